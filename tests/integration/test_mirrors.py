"""Mirrors of a registry: asked first, done without when they fail."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.daemon import free_ports
from tests.parts.node import Node
from tests.parts.registry import PASSWORD, Registry
from tests.parts.registryclient import auth_file
from tests.parts.webanswer import Answer, Request
from tests.parts.webserver import WebServer

pytestmark = pytest.mark.skipif(Registry.missing() != "", reason=Registry.missing())

HOUR = 3600


@pytest.fixture(scope="module")
def origin() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def mirror(origin: Registry) -> Iterator[Registry]:
    """A pull-through cache of that registry."""
    with Registry(mirror_of=origin.url) as registry:
        yield registry


@pytest.fixture
def repository(origin: Registry, sif: bytes, tmp_path: Path) -> str:
    """A repository of this test's own, with an image."""
    name = f"lab/{uuid4().hex}"
    (tmp_path / "x.sif").write_bytes(sif)
    origin.push_sif(tmp_path / "x.sif", name, "1")
    return name


def conf(origin: Registry, *mirrors: str, more: str = "") -> str:
    sections = "".join(f"[registry {mirror}]\ninsecure = yes\n" for mirror in mirrors)
    return (
        f"[registry {origin.host}]\ninsecure = yes\nmirrors = {' '.join(mirrors)}\n{sections}{more}"
    )


def read_from(registry: Registry, repository: str) -> list[str]:
    """Return which kinds of things were read from a registry, successfully."""
    return [
        line.path.split("/")[-2]
        for line in registry.requests()
        if line.method == "GET" and f"/{repository}/" in line.path and line.status == 200
    ]


def test_a_pull_through_mirror_goes_first(
    node: Node, origin: Registry, mirror: Registry, repository: str, sif: bytes
) -> None:
    node.configure(conf(origin, mirror.host))
    staged(node, 1, f"container:oras://{origin.host}/{repository}:1", sif, how="fetched")
    assert read_from(mirror, repository) == ["manifests", "blobs"]
    let_pass(node, HOUR + 1)
    staged(node, 2, f"container:oras://{origin.host}/{repository}:1", sif, how="unchanged")


def test_the_registry_itself_when_the_mirror_is_down(
    node: Node, origin: Registry, mirror: Registry, repository: str, sif: bytes
) -> None:
    node.configure(conf(origin, mirror.host))
    mirror.stop()
    try:
        began = time.monotonic()
        staged(node, 1, f"container:oras://{origin.host}/{repository}:1", sif, how="fetched")
        assert time.monotonic() - began < 10
    finally:
        mirror.start()
    assert read_from(origin, repository) == ["manifests", "blobs"]
    assert f"mirror {mirror.host}: " in node.log()
    assert "Connection refused" in node.log()


def test_registries_conf(
    node: Node, origin: Registry, mirror: Registry, repository: str, sif: bytes
) -> None:
    (node.folder / "registries.conf").write_text(
        f"""
        unqualified-search-registries = ["docker.io"]
        [[registry]]
        prefix = "images.example.org/bio"
        location = "{origin.host}/lab"
        insecure = true
        [[registry.mirror]]
        location = "127.0.0.1:{free_ports(1)[0]}/nothing"
        insecure = true
        [[registry.mirror]]
        location = "{mirror.host}/lab"
        insecure = true
        """
    )
    rest = repository.removeprefix("lab/")
    staged(node, 1, f"container:oras://images.example.org/bio/{rest}:1", sif, how="fetched")
    assert read_from(mirror, repository) == ["manifests", "blobs"]


def test_what_is_blocked(node: Node) -> None:
    folder = node.folder / "registries.conf.d"
    folder.mkdir()
    (folder / "50-site.conf").write_text('[[registry]]\nprefix = "*.example.org"\nblocked = true\n')
    refused(node, 1, "container:oras://a.example.org/x:1", "NotAllowed", "*.example.org is blocked")


def test_a_broken_registries_conf(node: Node) -> None:
    path = node.folder / "registries.conf"
    path.write_text("[[registry]\n")
    refused(node, 1, "container:oras://h.example.org/x:1", "ConfigError", f"{path} cannot be used")
    done = node.hpcimg("config")
    assert done.returncode == 31
    assert str(path) in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose the site's logins are")
def test_the_mirrors_own_login_and_no_other(
    node: Node, origin: Registry, repository: str, sif: bytes, tmp_path: Path
) -> None:
    files = {name: tmp_path / f"{name}.json" for name in ("origin", "mirror")}
    with Registry(basic=True) as mirror, WebServer() as curious:
        (tmp_path / "y.sif").write_bytes(sif)
        mirror.push_sif(tmp_path / "y.sif", f"proxy/{repository}", "1")
        files["origin"].write_text(auth_file(origin.host, username="jo", password="for-the-origin"))
        files["mirror"].write_text(auth_file(mirror.host))
        host = f"127.0.0.1:{curious.port}"

        def ask(_: Request) -> Answer:
            return Answer(401, {"WWW-Authenticate": 'Basic realm="give me all"'})

        curious.handle(f"/v2/{repository}/manifests/1", ask)
        node.configure(
            f"[registry {origin.host}]\ninsecure = yes\nauth_file = {files['origin']}\n"
            f"shared = yes\nmirrors = {host} {mirror.host}/proxy\n"
            f"[registry {host}]\ninsecure = yes\n"
            f"[registry {mirror.host}]\ninsecure = yes\nauth_file = {files['mirror']}\n"
            "shared = yes\n"
        )
        staged(node, 1, f"container:oras://{origin.host}/{repository}:1", sif, how="fetched")
        assert read_from(mirror, f"proxy/{repository}") == ["manifests", "blobs"]
        [request] = curious.requests()
        assert "Authorization" not in request.headers
        assert request.query == f"ns={origin.host.replace(':', '%3A')}"
    assert f"mirror {host}: " in node.log()
    assert PASSWORD not in node.log()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404),
        Answer(401),
        Answer(403),
        Answer(429, {"Retry-After": "600"}),
        Answer(503),
        Answer(200, {}, b"<html>"),
        Answer(200, {}, b"{}"),
        Answer(302, {"Location": "/nowhere"}),
    ],
    ids=lambda answer: f"{answer.status}-{bytes(answer.body).decode()}",
)
def test_a_mirror_that_does_not_serve(
    node: Node, web: WebServer, origin: Registry, repository: str, sif: bytes, answer: Answer
) -> None:
    host = f"127.0.0.1:{web.port}"
    web.handle(f"/v2/{repository}/manifests/1", lambda _: answer)
    node.configure(conf(origin, host))
    staged(node, 1, f"container:oras://{origin.host}/{repository}:1", sif, how="fetched")
    assert f"mirror {host}: " in node.log()
    assert web.count(path=f"/v2/{repository}/manifests/1") == 1


def test_a_manifest_under_a_digest_that_is_not_its_own(
    node: Node, web: WebServer, origin: Registry, make_sif: MakeSif, tmp_path: Path
) -> None:
    good = make_sif()
    (tmp_path / "good.sif").write_bytes(good)
    digest = origin.push_sif(tmp_path / "good.sif", "lab/pinned", "1")
    other = {"schemaVersion": 2, "layers": [{"digest": digest}]}
    host = f"127.0.0.1:{web.port}"
    web.put(f"/v2/lab/pinned/manifests/{digest}", json.dumps(other).encode())
    node.configure(conf(origin, host))
    staged(node, 1, f"container:oras://{origin.host}/lab/pinned@{digest}", good, how="fetched")
    assert "is not what the registry sent" in node.log()


@pytest.mark.parametrize("kind", ["cut", "missing"])
def test_a_blob_that_the_mirror_does_not_have_comes_from_the_next(
    node: Node, web: WebServer, origin: Registry, repository: str, sif: bytes, kind: str
) -> None:
    host = f"127.0.0.1:{web.port}"
    stored = origin.folder.glob(
        f"storage/**/repositories/{repository}/_manifests/tags/1/current/link"
    )
    digest = next(iter(stored)).read_text()
    [data] = origin.folder.glob(f"storage/**/sha256/*/{digest.removeprefix('sha256:')}/data")
    manifest = data.read_bytes()
    blob = json.loads(manifest)["layers"][0]["digest"]
    web.put(f"/v2/{repository}/manifests/1", manifest)
    if kind == "cut":
        path = f"/v2/{repository}/blobs/{blob}"
        wrong_length = {"Content-Length": str(len(sif))}
        web.handle(path, lambda _: Answer(200, wrong_length, sif[:100_000]))
    node.configure(conf(origin, host))
    staged(node, 1, f"container:oras://{origin.host}/{repository}:1", sif, how="fetched")
    assert read_from(origin, repository) == ["blobs"]
    assert f"mirror {host}: " in node.log()


def test_a_mirror_that_says_nothing(
    node: Node, web: WebServer, origin: Registry, repository: str, sif: bytes
) -> None:
    path = f"/v2/{repository}/manifests/1"
    web.put(path, b"x" * 100)
    node.configure(conf(origin, f"127.0.0.1:{web.port}", more="[stage]\nstall_timeout = 1s\n"))
    with web.hold(path, after_bytes=10):
        staged(node, 1, f"container:oras://{origin.host}/{repository}:1", sif, how="fetched")


def test_all_fail_and_the_registrys_own_answer_counts(
    node: Node, web: WebServer, origin: Registry
) -> None:
    node.configure(conf(origin, f"127.0.0.1:{web.port}"))
    comment = f"container:oras://{origin.host}/lab/no-such:1"
    refused(node, 1, comment, "NotFound", f"{origin.host}/lab/no-such:1")
