"""Mirrors of web servers, object stores and libraries: asked first, bypassed when they fail."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.integration.test_library import FILE, IMAGE, URI
from tests.parts.daemon import free_ports
from tests.parts.nginxmirror import NginxMirror
from tests.parts.node import Node
from tests.parts.objectstore import SITE
from tests.parts.publish import in_library
from tests.parts.sitetier import events
from tests.parts.webanswer import Answer, Fault
from tests.parts.webfaults import Corrupt, Html, Ok, Status, Truncate
from tests.parts.webserver import WebServer

HOUR = 3600


@pytest.fixture
def mirror() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture
def mirrored(node: Node, web: WebServer, mirror: WebServer) -> Node:
    """A node for which the second server is a mirror of the first."""
    node.configure(conf(web, mirror))
    return node


def fetched_via(node: Node) -> list[str]:
    """Return where each image's bytes came from."""
    return [event["via"] for event in events(node, "fetched")]


def conf(web: WebServer, mirror: WebServer) -> str:
    return f"[mirror it]\nof = {web.url()}\nurl = {mirror.url('/at')}/\n"


def test_the_mirror_goes_first(
    mirrored: Node, web: WebServer, mirror: WebServer, sif: bytes
) -> None:
    comment = f"container:{web.url('/lab/x.sif')}"
    mirror.put("/at/lab/x.sif", sif, etag='"1"')
    staged(mirrored, 1, comment, sif, how="fetched")
    let_pass(mirrored, HOUR + 1)
    staged(mirrored, 2, comment, sif, how="unchanged")
    assert [r.headers.get("If-None-Match") for r in mirror.requests()] == [None, '"1"']
    assert fetched_via(mirrored) == ["mirror"]
    assert web.count() == 0


@pytest.mark.parametrize(
    "fault",
    [
        Status(404),
        Status(403),
        Status(503, retry_after="600"),
        Status(429, retry_after="600"),
        Html(),
        Truncate(100_000),
    ],
    ids=lambda fault: type(fault).__name__ + str(getattr(fault, "status", "")),
)
def test_a_mirror_that_does_not_serve(
    mirrored: Node, web: WebServer, mirror: WebServer, url: str, sif: bytes, fault: Fault
) -> None:
    mirror.put("/at/x.sif", sif)
    mirror.script("/at/x.sif", [fault] * 2)
    staged(mirrored, 1, f"container:{url}", sif, how="fetched")
    assert fetched_via(mirrored) == ["origin"]
    assert web.count(path="/x.sif") == 1
    assert f"mirror 127.0.0.1:{mirror.port}: " in mirrored.log()


def test_a_mirror_that_is_down(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    node.configure(f"[mirror it]\nof = {web.url()}\nurl = {nowhere}\n")
    staged(node, 1, f"container:{url}", sif, how="fetched")


def test_the_sources_own_answer_counts(mirrored: Node, web: WebServer) -> None:
    refused(mirrored, 1, f"container:{web.url('/no.sif')}", "NotFound", web.url("/no.sif"))


def test_a_signature_is_for_the_source_alone(
    mirrored: Node, web: WebServer, mirror: WebServer, sif: bytes
) -> None:
    web.put("/x.sif", sif)
    staged(mirrored, 1, f"container:{web.url('/x.sif?arch=amd64')}", sif)
    assert mirror.count() == 0


@pytest.mark.parametrize("kind", ["good", "not there", "wrong"])
def test_s3(node: Node, web: WebServer, mirror: WebServer, make_sif: MakeSif, kind: str) -> None:
    """The site's keys sign what the endpoint is asked, and nothing else."""
    data = make_sif()
    keys = node.directory / "keys"
    keys.write_text(SITE.file)
    s3 = f"[s3]\nurl = {web.url()}\nauth_file = {keys}\nshared = yes\n"
    node.configure(f"{s3}{conf(web, mirror)}")
    sums = {
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
        "x-amz-checksum-type": "FULL_OBJECT",
    }
    web.put("/bucket/x.sif", data, etag='"1"')
    if kind != "not there":
        mirror.put("/at/bucket/x.sif", data, etag='"1"', headers=sums)
    mirror.script("/at/bucket/x.sif", [Corrupt(-1) if kind == "wrong" else Ok()])
    staged(node, 1, "container:s3://bucket/x.sif", data, how="fetched")
    [asked] = mirror.requests()
    assert "Authorization" not in asked.headers
    assert "x-amz" not in str(asked.headers).lower()
    assert web.count(path="/bucket/x.sif") == (kind != "good")


@pytest.mark.parametrize("kind", ["good", "wrong file", "busy"])
def test_a_library(
    node: Node, web: WebServer, mirror: WebServer, make_sif: MakeSif, kind: str
) -> None:
    data = make_sif()
    node.configure(
        f"[library]\nurl = {web.url()}\n[mirror it]\nof = {web.url()}\nurl = {mirror.url()}\n"
    )
    for server in (web, mirror):
        in_library(server, URI.removeprefix("library://"), data)
    if kind == "wrong file":
        mirror.script(FILE, [Corrupt(-1)])
    elif kind == "busy":
        for path in (IMAGE, FILE):
            mirror.handle(path, lambda _: Answer(429, {"Retry-After": "600"}))
    staged(node, 1, f"container:{URI}", data)
    assert fetched_via(node) == ["mirror" if kind == "good" else "origin"]
    assert (web.count("GET", IMAGE), web.count("GET", FILE)) == {
        "good": (0, 0), "wrong file": (0, 1), "busy": (1, 1),
    }[kind]  # fmt: skip


@pytest.mark.skipif(NginxMirror.missing() != "", reason=NginxMirror.missing())
def test_nginx_as_the_mirror(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    data = make_sif(size_bytes=20 << 20)
    web.put("/lab/x.sif", data, etag='"1"')
    with NginxMirror(servers={"images.example.org": web.url()}) as nginx:
        node.configure(f"[mirror it]\nof = {web.url()}\nurl = {nginx.url}/images.example.org\n")
        staged(node, 1, f"container:{web.url('/lab/x.sif')}", data, how="fetched")
        ranges = {request.headers.get("Range") for request in web.requests()}
        assert len(ranges) == 3
        assert None not in ranges
