"""A static registry: web pages with the layout of registry-org."""

from __future__ import annotations

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.publish import in_static_registry, md5, sha256
from tests.parts.webserver import WebServer

MANIFEST = "/base/lab/samtools/manifests/1/"
URI = "container:pages://lab/samtools:1"
HOUR = 3600


@pytest.fixture
def pages(node: Node, web: WebServer) -> WebServer:
    """A web server, configured for the node as pages://."""
    node.configure(f"[static pages]\nurl = {web.url('/base')}\n")
    return web


@pytest.mark.parametrize("digest", [sha256, md5])
def test_an_image(node: Node, pages: WebServer, make_sif: MakeSif, digest) -> None:
    first, second = make_sif(), make_sif()
    in_static_registry(pages, MANIFEST, first, digest=digest)
    staged(node, 1, URI, first, how="fetched")
    before = pages.count()
    let_pass(node, 2 * HOUR)
    staged(node, 2, URI, first, how="unchanged")
    assert pages.count() == before + 1
    in_static_registry(pages, MANIFEST, second, digest=digest)
    let_pass(node, 2 * HOUR)
    staged(node, 3, URI, second, how="fetched")


@pytest.mark.parametrize("digest", [sha256, md5])
def test_another_file_than_the_manifest_says(
    node: Node, pages: WebServer, make_sif: MakeSif, digest
) -> None:
    data = make_sif()
    in_static_registry(pages, MANIFEST, data, digest=lambda right: digest(right + b"x"))
    refused(node, 1, URI, "Damaged")
    assert node.images() == []


def test_an_address_relative_to_the_manifest(
    node: Node, pages: WebServer, make_sif: MakeSif
) -> None:
    data = make_sif()
    in_static_registry(pages, MANIFEST, data, address="/files/samtools.simg")
    staged(node, 1, URI, data)


def test_what_is_not_there(node: Node, pages: WebServer) -> None:
    refused(node, 1, URI, "NotFound", "there is nothing at pages://lab/samtools:1")


@pytest.mark.parametrize(
    "manifest",
    [
        b"<html>",
        b"{}",
        b'{"layers": [{"mediaType": "x", "urls": ["http://h/x"], "digest": "md5:x"}]}',
        b'{"layers": [1, {}, {"mediaType": "application/vnd.singularity.image.squashfs"}]}',
    ],
)
def test_a_manifest_that_is_none(node: Node, pages: WebServer, manifest: bytes) -> None:
    pages.put(MANIFEST, manifest)
    refused(node, 1, URI, "NotAnImage", "pages://lab/samtools:1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("samtools", "pages://ORG/NAME:TAG"),
        ("lab/../samtools", "has . or .. in it"),
        ("lab/samtools:a:b", "pages://ORG/NAME:TAG"),
    ],
)
def test_what_is_no_name(node: Node, pages: WebServer, text: str, said: str) -> None:
    refused(node, 1, f"container:pages://{text}", "BadReference", said)
    assert pages.count() == 0


def test_a_name_that_is_a_scheme_already(node: Node) -> None:
    node.configure("[static docker]\nurl = https://images.example.org\n")
    done = node.hpcimg("path", "/data/x.sif")
    assert done.returncode == 31
    assert "[static docker] cannot be a scheme: it is one already" in done.stderr
