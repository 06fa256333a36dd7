"""SIF images in an OCI registry: a real one, and a stand-in for what a real one never does."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from tests.integration.checks import failed, let_pass, refused, staged, together
from tests.integration.conftest import MakeSif, Start
from tests.parts.node import Node
from tests.parts.registry import MANIFEST, SIF_CONFIG, SIF_LAYER, Registry, Request
from tests.parts.webanswer import Answer, Fault
from tests.parts.webanswer import Request as WebRequest
from tests.parts.webfaults import Corrupt, Redirect, Status, Truncate
from tests.parts.webserver import WebServer

HOUR = 3600
ACCEPTED = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """One registry for all tests; each has repositories of its own in it."""
    if missing := Registry.missing():
        pytest.skip(missing)
    with Registry() as registry:
        yield registry


class Repository:
    """A repository of this test's own."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.name = f"test/{uuid4().hex}"
        self._registry = registry
        self._folder = folder
        self._seen = 0

    def push(self, data: bytes, tag: str = "1") -> str:
        """Push an image; return the digest of its manifest."""
        path = self._folder / "pushed.sif"
        path.write_bytes(data)
        return self._registry.push_sif(path, self.name, tag)

    def comment(self, version: str = ":1") -> str:
        return f"container:oras://{self._registry.host}/{self.name}{version}"

    def asked(self) -> list[Request]:
        """Return what was read from here since the last look."""
        found = [
            r for r in self._registry.requests() if f"/{self.name}/" in r.path and r.method == "GET"
        ]
        new, self._seen = found[self._seen :], len(found)
        return new


@pytest.fixture
def repository(registry: Registry, node: Node, tmp_path: Path) -> Repository:
    node.configure(f"[registry {registry.host}]\ninsecure = yes\n")
    return Repository(registry, tmp_path)


@pytest.fixture
def sif(make_sif: MakeSif) -> bytes:
    return make_sif()


def kinds(requests: list[Request]) -> list[str]:
    """Return what was asked for: manifests and blobs."""
    return [request.path.split("/")[-2] for request in requests]


# A real registry


def test_by_tag(node: Node, repository: Repository, sif: bytes) -> None:
    repository.push(sif)
    staged(node, 1, repository.comment(), sif, how="fetched")
    assert kinds(repository.asked()) == ["manifests", "blobs"]
    staged(node, 2, repository.comment(), sif, how="hit")
    assert repository.asked() == []
    # After the time to live, one question.
    let_pass(node, HOUR + 1)
    staged(node, 3, repository.comment(), sif, how="unchanged")
    assert kinds(repository.asked()) == ["manifests"]


def test_without_a_tag_it_is_latest(node: Node, repository: Repository, sif: bytes) -> None:
    repository.push(sif, "latest")
    staged(node, 1, repository.comment(""), sif, how="fetched")


def test_a_digest_is_for_ever(node: Node, repository: Repository, sif: bytes) -> None:
    digest = repository.push(sif)
    comment = repository.comment(f"@{digest}")
    staged(node, 1, comment, sif, how="fetched")
    assert repository.asked()
    let_pass(node, 1000 * HOUR)
    staged(node, 2, comment, sif, how="hit")
    node.reboot()
    staged(node, 3, comment, sif, how="hit")
    # With a tag beside it, the digest counts.
    staged(node, 4, repository.comment(f":no-such-tag@{digest}"), sif)
    assert kinds(repository.asked()) == ["manifests"]


def test_two_tags_of_one_image_are_one_blob(node: Node, repository: Repository, sif: bytes) -> None:
    repository.push(sif, "1")
    repository.push(sif, "stable")
    staged(node, 1, f"{repository.comment(':1')} {repository.comment(':stable')}", sif, sif)
    assert kinds(repository.asked()) == ["manifests", "blobs", "manifests"]
    assert len(node.images()) == 1


def test_two_tags_of_one_image_at_once_are_one_blob(
    start: Start, node: Node, repository: Repository, sif: bytes
) -> None:
    for number in range(6):
        repository.push(sif, f"t{number}")
    comments = [repository.comment(f":t{number}") for number in range(6)]
    assert {task.code for task in together(start, node, *comments).values()} == {0}
    assert kinds(repository.asked()).count("blobs") == 1


def test_a_tag_that_moved(node: Node, repository: Repository, make_sif: MakeSif) -> None:
    old, new = make_sif(), make_sif()
    repository.push(old)
    staged(node, 1, repository.comment(), old)
    repository.push(new)
    staged(node, 2, repository.comment(), old, how="hit")
    let_pass(node, HOUR + 1)
    staged(node, 3, repository.comment(), new, how="fetched")
    # And back again: that one is still there.
    repository.asked()
    repository.push(old)
    let_pass(node, HOUR + 1)
    staged(node, 4, repository.comment(), old)
    assert kinds(repository.asked()) == ["manifests"]


def test_what_is_not_there(start: Start, node: Node, repository: Repository, sif: bytes) -> None:
    repository.push(sif)
    comments = [
        repository.comment(":no-such-tag"),
        repository.comment("/no-such-repository:1"),
        repository.comment("@sha256:" + "0" * 64),
    ]
    for job, task in together(start, node, *comments).items():
        failed(node, job, task, "NotFound", comments[job - 1].removeprefix("container:"))
        assert node.record(job)["class"] == "user"


def test_what_is_no_reference(start: Start, node: Node) -> None:
    rests = [
        "h",
        "h/",
        "h/UPPER:1",
        "h/x:a:b",
        "h/x@sha256:12",
        "h/x@md5:" + "0" * 64,
        "h/x:" + "t" * 129,
    ]
    comments = [f"container:oras://{rest}" for rest in rests]
    for job, task in together(start, node, *comments).items():
        failed(node, job, task, "BadReference")


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_image_that_is_no_sif(
    registry: Registry, node: Node, repository: Repository, kind: str
) -> None:
    config = registry.push_blob(repository.name, io.BytesIO(b"{}"))
    layer = registry.push_blob(repository.name, io.BytesIO(b"layer"))
    types = {
        "oci": (
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ),
        "docker": (
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    }[kind]
    manifest = {
        "schemaVersion": 2,
        "mediaType": types[0],
        "config": {"mediaType": types[1], "size": 2, "digest": config},
        "layers": [{"mediaType": types[2], "size": 5, "digest": layer}],
    }
    registry.push_manifest(repository.name, "1", manifest)
    refused(node, 1, repository.comment(), "NotAnImage", "holds no SIF image", "apptainer push")
    assert kinds(repository.asked()) == ["manifests"]


def test_a_registry_that_is_down(
    registry: Registry, node: Node, repository: Repository, sif: bytes
) -> None:
    repository.push(sif)
    staged(node, 1, repository.comment(), sif)
    let_pass(node, HOUR + 1)
    registry.stop()
    try:
        staged(node, 2, repository.comment(), sif, how="stale")
        staged(node, 3, repository.comment(), sif, how="hit")
    finally:
        registry.start()
    assert node.log().count("WARNING") == 2  # one retry, one image served all the same
    assert "serving the image of 1 h ago" in node.log()
    let_pass(node, 61)
    staged(node, 4, repository.comment(), sif, how="unchanged")


# A stand-in


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
        (Answer(200, {}, b"<html>"), "NotAnImage", "did not answer as a registry does"),
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
        ('Bearer realm="http://["', "BadReference"),
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
        ([Truncate(100_000), Corrupt(300_000)], "sha256"),
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


@pytest.mark.parametrize(
    ("path", "error"), [("manifest_path", "NotAnImage"), ("blob_path", "Damaged")]
)
def test_a_304_that_nobody_asked_for_is_no_image(
    node: Node, stand_in: StandIn, path: str, error: str
) -> None:
    stand_in.web.script(getattr(stand_in, path), [Status(304, body=b"")])
    refused(node, 1, stand_in.comment, error)


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
