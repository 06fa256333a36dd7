"""The protocol of registries, and what no real one does: a web server stands in for it."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import pytest

from tests.integration.checks import failed, refused, staged, together
from tests.integration.conftest import Start
from tests.parts.node import Node
from tests.parts.registry import MANIFEST, SIF_CONFIG, SIF_LAYER
from tests.parts.webanswer import Answer, Fault
from tests.parts.webanswer import Request as WebRequest
from tests.parts.webfaults import Corrupt, Redirect, Status, Truncate
from tests.parts.webserver import WebServer

ACCEPTED = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}


class StandIn(NamedTuple):
    """One image in a registry that a web server plays."""

    web: WebServer
    manifest: bytes
    manifest_path: str
    blob_path: str
    comment: str


@pytest.fixture
def stand_in(node: Node, web: WebServer, sif: bytes) -> StandIn:
    digest = f"sha256:{hashlib.sha256(sif).hexdigest()}"
    layer = {"mediaType": SIF_LAYER, "size": len(sif), "digest": digest}
    empty = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
    config = {"mediaType": SIF_CONFIG, "size": 2, "digest": empty}
    fields = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    manifest = json.dumps(fields).encode()
    paths = "/v2/some/image/manifests/1", f"/v2/some/image/blobs/{digest}"
    web.put(paths[0], manifest, content_type=MANIFEST)
    web.put(paths[1], sif, etag='"blob"')
    host = f"127.0.0.1:{web.port}"
    node.configure(f"[registry {host}]\ninsecure = yes\n")
    return StandIn(web, manifest, *paths, f"container:oras://{host}/some/image:1")


def with_token(stand_in: StandIn, *, token: str = "T") -> None:
    """Let the stand-in ask for the token T, and give one."""
    web = stand_in.web
    challenge = f'Bearer realm="{web.url("/token")}",service="the registry",scope="ignored"'

    def guarded(path: str, good: Answer) -> None:
        def answer(request: WebRequest) -> Answer:
            if request.headers["Authorization"] != "Bearer T":
                return Answer(401, {"WWW-Authenticate": challenge}, b"{}")
            return good

        web.handle(path, answer)

    guarded(stand_in.manifest_path, Answer(200, {"Content-Type": MANIFEST}, stand_in.manifest))
    guarded(stand_in.blob_path, Answer(307, {"Location": stand_in.blob_path}))

    web.handle("/token", lambda _: Answer(200, {}, json.dumps({"token": token}).encode()))


def test_asks_as_registries_want_to_be_asked(node: Node, stand_in: StandIn, sif: bytes) -> None:
    staged(node, 1, stand_in.comment, sif)
    first, second = stand_in.web.requests()
    assert {part.strip() for part in first.headers["Accept"].split(",")} == ACCEPTED
    assert "Authorization" not in first.headers
    assert second.path == stand_in.blob_path


def test_a_token_is_fetched_and_kept_from_other_hosts(
    node: Node, stand_in: StandIn, sif: bytes
) -> None:
    with_token(stand_in)
    with WebServer() as storage:
        # As registries do: the blobs are in an object store.
        place = storage.put("/bucket/blob", sif)

        def elsewhere(request: WebRequest) -> Answer:
            known = request.headers["Authorization"] == "Bearer T"
            return Answer(307, {"Location": f"{place}?signature=s"}) if known else Answer(401)

        stand_in.web.handle(stand_in.blob_path, elsewhere)
        staged(node, 1, stand_in.comment, sif)
        [request] = storage.requests()
        assert "Authorization" not in request.headers
        assert request.query == "signature=s"
    paths = [request.path for request in stand_in.web.requests()]
    manifest, blob = stand_in.manifest_path, stand_in.blob_path
    assert paths == [manifest, "/token", manifest, blob]
    [token] = stand_in.web.requests(path="/token")
    assert token.query == "scope=repository%3Asome%2Fimage%3Apull&service=the+registry"
    assert "Authorization" not in token.headers


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_a_token_by_either_name(node: Node, stand_in: StandIn, sif: bytes, field: str) -> None:
    with_token(stand_in)
    stand_in.web.handle("/token", lambda _: Answer(200, {}, json.dumps({field: "T"}).encode()))
    good = Answer(200, {}, sif)
    stand_in.web.handle(stand_in.blob_path, lambda _: good)
    staged(node, 1, stand_in.comment, sif)


def test_a_registry_that_refuses_its_own_token(node: Node, stand_in: StandIn) -> None:
    with_token(stand_in, token="another")
    refused(node, 1, stand_in.comment, "Forbidden", "may not be read")
    assert stand_in.web.count(path="/token") == 1


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Answer(403), "Forbidden", "may not be read"),
        (Answer(200, {}, b"<html>"), "NotAnImage", "is not a JSON object"),
        # These are asked again; then it says that this would be in vain for long.
        (Answer(200, {}, b'{"token": 5}'), "Unreachable", "gave no token"),
        (Answer(200, {}, b'{"token": "a\\r\\nb"}'), "Unreachable", "gave no token"),
        (Answer(503, {"Retry-After": "0"}), "Unreachable", "the server answered 503"),
    ],
)
def test_a_token_that_is_not_given(
    node: Node, stand_in: StandIn, answer: Answer, error: str, words: str
) -> None:
    with_token(stand_in)
    answers = iter([answer, Answer(503, {"Retry-After": "600"})])
    stand_in.web.handle("/token", lambda _: next(answers))
    refused(node, 1, stand_in.comment, error)
    assert words in node.log()


def test_a_challenge_that_leads_nowhere(start: Start, node: Node, stand_in: StandIn) -> None:
    cases = [
        ("", "Forbidden"),
        ("Basic realm=x", "Forbidden"),
        ("Bearer", "Forbidden"),
        ('Bearer realm="ftp://h/"', "Forbidden"),
        ('Bearer realm="http://["', "Forbidden"),
    ]
    for number, (challenge, _) in enumerate(cases):
        answer = Answer(401, {"WWW-Authenticate": challenge} if challenge else {})
        stand_in.web.handle(f"{stand_in.manifest_path}-{number}", lambda _, a=answer: a)
    comments = [f"{stand_in.comment}-{number}" for number in range(len(cases))]
    tasks = together(start, node, *comments)
    for (job, task), (_, error) in zip(tasks.items(), cases, strict=True):
        failed(node, job, task, error)
    assert stand_in.web.count() == len(cases)


def test_a_manifest_that_is_none(start: Start, node: Node, stand_in: StandIn) -> None:
    bodies = [
        b"", b"<html>", b"[]", b"{}", b'{"layers": 5}', b'{"layers": [5, {"mediaType": []}]}',
        b"[" * 100_000, b" " * (5 << 20),
    ]  # fmt: skip
    for number, body in enumerate(bodies):
        stand_in.web.put(f"{stand_in.manifest_path}-{number}", body)
    comments = [f"{stand_in.comment}-{number}" for number in range(len(bodies))]
    for job, task in together(start, node, *comments).items():
        failed(node, job, task, "NotAnImage")


def test_a_manifest_that_is_not_the_one_asked_for(node: Node, stand_in: StandIn) -> None:
    digest = "sha256:" + "0" * 64
    stand_in.web.put(stand_in.manifest_path.replace("/1", f"/{digest}"), stand_in.manifest)
    refused(node, 1, stand_in.comment.removesuffix(":1") + f"@{digest}", "Damaged")


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ([Corrupt(300_000)], "is not what was announced"),
        ([Truncate(100_000), Corrupt(300_000), Corrupt(300_000)], "sha256"),
    ],
)
def test_a_blob_that_is_not_what_its_digest_says(
    node: Node, stand_in: StandIn, sif: bytes, faults: list[Fault], words: str
) -> None:
    stand_in.web.script(stand_in.blob_path, faults)
    refused(node, 1, stand_in.comment, "Damaged", words)
    assert node.record(1)["class"] == "transient"
    assert node.images() == []
    staged(node, 2, stand_in.comment, sif, how="fetched")


def test_a_blob_goes_on_where_it_ended(node: Node, stand_in: StandIn, sif: bytes) -> None:
    stand_in.web.script(stand_in.blob_path, [Truncate(300_000)])
    staged(node, 1, stand_in.comment, sif)
    requests = stand_in.web.requests(path=stand_in.blob_path)
    assert [request.headers["Range"] for request in requests] == [None, "bytes=300000-"]


def test_a_blob_that_is_missing(node: Node, stand_in: StandIn) -> None:
    stand_in.web.remove(stand_in.blob_path)
    refused(node, 1, stand_in.comment, "NotFound")


def test_a_manifest_that_is_busy_is_asked_again(node: Node, stand_in: StandIn, sif: bytes) -> None:
    stand_in.web.script(stand_in.manifest_path, [Status(429, retry_after="0")] * 2)
    staged(node, 1, stand_in.comment, sif)
    assert stand_in.web.count(path=stand_in.manifest_path) == 3


@pytest.mark.parametrize("path", ["manifest_path", "blob_path"])
def test_a_304_that_nobody_asked_for(node: Node, stand_in: StandIn, path: str) -> None:
    stand_in.web.script(getattr(stand_in, path), [Status(304, body=b"")])
    refused(node, 1, stand_in.comment, "UserError", "the server answered 304 Not Modified")


def test_a_manifest_behind_a_redirect_to_another_host(
    node: Node, stand_in: StandIn, sif: bytes
) -> None:
    with WebServer() as other:
        other.put("/manifest", stand_in.manifest)
        stand_in.web.script(stand_in.manifest_path, [Redirect(other.url("/manifest"))])
        staged(node, 1, stand_in.comment, sif)


def test_a_registry_without_tls_has_to_be_named(node: Node, stand_in: StandIn) -> None:
    node.configure("[stage]\ndeadline = 1s\n")
    task = node.stage(1, stand_in.comment)
    assert task.code == 1
    assert stand_in.web.count() == 0
