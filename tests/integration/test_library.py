"""library:// at a stand-in that speaks the protocol, and at the real registry behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.publish import in_library
from tests.parts.registry import Registry
from tests.parts.webanswer import Answer, Request
from tests.parts.webfaults import Status
from tests.parts.webserver import WebServer

NAME = "lab/tools/samtools:1"
URI = f"library://{NAME}"
IMAGE = f"/v1/images/{NAME}"
FILE = f"/v1/imagefile/{NAME}"
HOUR = 3600


@pytest.fixture
def library(node: Node, web: WebServer) -> WebServer:
    """A library that has no registry behind it, configured for the node."""
    node.configure(f"[library]\nurl = {web.url('')}\n")
    return web


@pytest.mark.parametrize("prefix", ["sha256.", "sha256:", ""])
def test_an_image(node: Node, library: WebServer, make_sif: MakeSif, prefix: str) -> None:
    data = make_sif()
    in_library(library, NAME, data, prefix=prefix)
    staged(node, 1, f"container:{URI}", data, how="fetched")
    assert all("arch=amd64" in request.query for request in library.requests(path=FILE))
    staged(node, 2, f"container:{URI}", data, how="hit")
    assert library.count("GET", FILE) == 1


def test_a_host_in_the_reference(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    host = f"127.0.0.1:{web.port}"
    node.configure(f"[registry {host}]\ninsecure = yes\n")
    data = make_sif()
    in_library(web, NAME, data)
    staged(node, 1, f"container:library://{host}/lab/tools/samtools:1", data)


def test_the_file_in_object_storage(node: Node, library: WebServer, make_sif: MakeSif) -> None:
    data = make_sif()
    with WebServer() as storage:
        in_library(library, NAME, data, redirect=f"{storage.put('/object', data)}?signature=x")
        staged(node, 1, f"container:{URI}", data)
        assert storage.count("GET") == 1


def test_after_the_ttl_one_request_tells(node: Node, library: WebServer, make_sif: MakeSif) -> None:
    first, second = make_sif(), make_sif()
    in_library(library, NAME, first)
    staged(node, 1, f"container:{URI}", first)
    before = library.count()
    let_pass(node, 2 * HOUR)
    staged(node, 2, f"container:{URI}", first, how="unchanged")
    assert library.count() == before + 1
    in_library(library, NAME, second)
    let_pass(node, 2 * HOUR)
    staged(node, 3, f"container:{URI}", second, how="fetched")


def test_another_file_than_announced(node: Node, library: WebServer, make_sif: MakeSif) -> None:
    data = make_sif()
    in_library(library, NAME, data)
    library.put(FILE, data[:-1] + bytes([data[-1] ^ 1]))
    refused(node, 1, f"container:{URI}", "Damaged", "is not what was announced")


def test_what_is_not_there(node: Node, library: WebServer) -> None:
    refused(node, 1, f"container:{URI}", "NotFound", f"there is nothing at {URI}")
    library.put(IMAGE, b'{"data": null}')
    refused(node, 2, f"container:{URI}", "NotFound", URI)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"data": {"hash": "md5.abc"}}', b"\xff"])
def test_a_library_that_is_none(node: Node, library: WebServer, answer: bytes) -> None:
    library.put(IMAGE, answer)
    refused(node, 1, f"container:{URI}", "NotAnImage", URI)


@pytest.mark.parametrize("text", ["lab/tools", "a/b/c/d/e", "lab//samtools", "lab/tools/x:a:b"])
def test_what_is_no_name(node: Node, library: WebServer, text: str) -> None:
    refused(node, 1, f"container:library://{text}", "BadReference", "entity/collection/container")
    assert library.count() == 0


def test_a_busy_library(node: Node, library: WebServer, make_sif: MakeSif) -> None:
    data = make_sif()
    in_library(library, NAME, data)
    library.script(IMAGE, [Status(503, retry_after="0")])
    staged(node, 1, f"container:{URI}", data)


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    if missing := Registry.missing():
        pytest.skip(missing)
    with Registry() as registry:
        yield registry


def test_a_library_with_a_registry_behind_it(
    node: Node, library: WebServer, registry: Registry, make_sif: MakeSif, tmp_path: Path
) -> None:
    data = make_sif()
    (tmp_path / "x.sif").write_bytes(data)
    registry.push_sif(tmp_path / "x.sif", "lab/tools/samtools", "1")
    in_library(library, NAME, data)
    seen: list[Request] = []

    def redirect(request: Request) -> Answer:
        seen.append(request)
        return Answer(200, body=json.dumps({"token": "t", "url": registry.url}).encode())

    library.handle("/v1/oci-redirect", redirect)
    staged(node, 1, f"container:{URI}", data, how="fetched")
    assert "namespace=lab%2Ftools" in seen[0].query
    assert library.count("GET", FILE) == 0
    assert len(registry.blob_gets()) == 1
    let_pass(node, 2 * HOUR)
    staged(node, 2, f"container:{URI}", data, how="unchanged")
