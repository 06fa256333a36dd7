"""s3:// at a stand-in, for what a small object store does not show."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests.integration.checks import finish, got, refused, staged
from tests.integration.conftest import MakeSif, Start
from tests.integration.test_rights import descendants, status_of
from tests.parts.node import Node
from tests.parts.objectstore import SITE
from tests.parts.webfaults import Redirect, Status, Truncate
from tests.parts.webserver import WebServer

PATH = "/bucket/x.sif"
URI = "s3://bucket/x.sif"
COMMENT = f"container:{URI}"


@pytest.fixture
def endpoint(node: Node, web: WebServer) -> WebServer:
    """An endpoint that the node has the site's keys for."""
    auth_file = node.directory / "keys"
    auth_file.write_text(SITE.file)
    node.configure(f"[s3]\nurl = {web.url('')}\nauth_file = {auth_file}\nshared = yes\n")
    return web


def error(status: int, code: str, more: str = "", **headers: str) -> Status:
    """Answer as S3 does where something is wrong."""
    body = f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>No.</Message>{more}</Error>"
    return Status(status, body=body.encode(), headers={"Content-Type": "application/xml"} | headers)


def scopes(web: WebServer) -> list[str]:
    """Return the region that each request was signed for."""
    found = [request.headers.get("Authorization", "") for request in web.requests()]
    return [text.split("/")[2] if text else "" for text in found]


def test_each_attempt_is_signed_anew(node: Node, endpoint: WebServer, make_sif: MakeSif) -> None:
    data = make_sif(size_bytes=2 << 20)
    endpoint.put(PATH, data, etag='"1"')
    # A second between the first and the last, which is as fine as signatures tell time.
    endpoint.script(PATH, [Truncate(1 << 20), Status(503, retry_after="1")])
    staged(node, 1, COMMENT, data)
    first, _, last = endpoint.requests()
    assert last.headers["Range"] == f"bytes={1 << 20}-"
    assert first.headers["X-Amz-Date"] < last.headers["X-Amz-Date"]
    assert first.headers["Authorization"] != last.headers["Authorization"]
    assert SITE.secret not in str(last.headers)


@pytest.mark.parametrize(
    "answer",
    [
        error(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-9"}),
        error(307, "TemporaryRedirect", **{"x-amz-bucket-region": "eu-west-9"}),
        error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-9</Region>"),
    ],
)
def test_another_region_is_followed_once(
    node: Node, endpoint: WebServer, sif: bytes, answer: Status
) -> None:
    endpoint.put(PATH, sif, etag='"1"')
    endpoint.script(PATH, [answer])
    staged(node, 1, COMMENT, sif)
    assert scopes(endpoint) == ["us-east-1", "eu-west-9"]


def test_regions_that_send_to_each_other(node: Node, endpoint: WebServer) -> None:
    regions = ["eu-west-1", "eu-west-2", "eu-west-1"]
    endpoint.script(PATH, [error(301, "X", **{"x-amz-bucket-region": name}) for name in regions])
    refused(node, 1, COMMENT, "Unreachable", f"{URI} could not be read", "region")
    assert len(scopes(endpoint)) == 2


@pytest.mark.parametrize("region", ["evil.example.org/", "x" * 65, "a@b"])
def test_a_region_that_is_none_is_not_followed(
    node: Node, endpoint: WebServer, region: str
) -> None:
    endpoint.script(PATH, [error(301, "PermanentRedirect", **{"x-amz-bucket-region": region})])
    refused(node, 1, COMMENT, "UserError", "301 PermanentRedirect", "[s3] url or region")
    assert len(scopes(endpoint)) == 1


def test_a_redirect_takes_nothing_along(node: Node, endpoint: WebServer, sif: bytes) -> None:
    with WebServer() as other:
        endpoint.script(PATH, [Redirect(f"{other.put('/x', sif)}?X-Amz-Signature=hush")])
        task = refused(node, 1, COMMENT, "UserError", "redirects of an object store")
        assert other.count() == 0
    assert "hush" not in task.printed + node.log()


@pytest.mark.parametrize(
    "answer",
    [error(503, "SlowDown"), error(400, "RequestTimeout"), error(500, "InternalError")],
)
def test_what_passes_is_tried_again(
    node: Node, endpoint: WebServer, sif: bytes, answer: Status
) -> None:
    endpoint.put(PATH, sif, etag='"1"')
    endpoint.script(PATH, [answer])
    staged(node, 1, COMMENT, sif)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (error(403, "RequestTimeTooSkewed"), "NodeError", ["the clock of this node"]),
        (error(403, "InvalidObjectState"), "UserError", [f"{URI} is archived"]),
        (error(400, "InvalidRequest"), "UserError", ["the server answered 400"]),
        (error(404, "NoSuchVersion"), "NotFound", [f"there is nothing at {URI}"]),
        (Status(404, body=b"x" * (1 << 20)), "NotFound", [f"there is nothing at {URI}"]),
    ],
)
def test_what_does_not(
    node: Node, endpoint: WebServer, answer: Status, kind: str, words: list[str]
) -> None:
    endpoint.script(PATH, [answer])
    refused(node, 1, COMMENT, kind, *words)
    assert endpoint.count() == 1


def test_a_version(node: Node, endpoint: WebServer, sif: bytes) -> None:
    endpoint.put(PATH, sif, etag='"1"')
    staged(node, 1, f"{COMMENT}?versionId=a.b_c", sif)
    assert [request.query for request in endpoint.requests()] == ["versionId=a.b_c"]


def with_checksum(value: str, kind: str) -> dict[str, str]:
    return {"x-amz-checksum-sha256": value, "x-amz-checksum-type": kind}


@pytest.mark.parametrize("kind", ["FULL_OBJECT", "COMPOSITE"])
def test_the_sha256_that_the_store_has(
    node: Node, endpoint: WebServer, make_sif: MakeSif, kind: str
) -> None:
    data, other = make_sif(), make_sif()
    digest = base64.b64encode(hashlib.sha256(other).digest()).decode()
    endpoint.put(PATH, data, etag='"1"', headers=with_checksum(digest, kind))
    if kind == "FULL_OBJECT":
        refused(node, 1, COMMENT, "Damaged")
    else:
        staged(node, 1, COMMENT, data)
    assert "x-amz-checksum-mode" in endpoint.requests()[0].headers["Authorization"]


def test_memory_does_not_grow_with_the_object(
    start: Start, node: Node, endpoint: WebServer, make_sif: MakeSif
) -> None:
    data = make_sif(size_bytes=64 << 20)
    endpoint.put(PATH, data, etag='"1"')
    with endpoint.hold(PATH, after_bytes=len(data) - 1) as hold:
        prolog = start(node, 1, COMMENT)
        hold.wait_reached()
        *_, child = descendants(prolog.pid)
        peak_kib = int(status_of(child)["VmHWM"][0])
        hold.release()
        finish(prolog)
    got(node, 1, node.task(1), data)
    assert peak_kib << 10 < len(data)
