"""Mirrors of a registry: they are asked first, and bypassed when they fail."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts import images
from tests.parts.daemon import free_ports
from tests.parts.images import read_from_image
from tests.parts.node import Node
from tests.parts.ociimages import make_layer, push_image, push_index
from tests.parts.registry import MANIFEST, PASSWORD, Registry
from tests.parts.registryclient import auth_file
from tests.parts.webanswer import Answer, Fault, Request
from tests.parts.webfaults import Chunked, Corrupt, Endless, NoLength, Ok, WrongLength
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
    """A repository with an image, for one test."""
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
    assert node.hpcimg_json("status")["via"] == {"mirror": len(sif)}
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
    (node.directory / "registries.conf").write_text(
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
    directory = node.directory / "registries.conf.d"
    directory.mkdir()
    (directory / "50-site.conf").write_text(
        '[[registry]]\nprefix = "*.example.org"\nblocked = true\n'
    )
    refused(node, 1, "container:oras://a.example.org/x:1", "NotAllowed", "*.example.org is blocked")


def test_a_broken_registries_conf(node: Node) -> None:
    path = node.directory / "registries.conf"
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
    assert "the registry sent something other than" in node.log()


def stored(origin: Registry, digest: str) -> bytes:
    """Return a manifest or blob that a registry has."""
    [path] = origin.directory.glob(f"storage/**/sha256/*/{digest.removeprefix('sha256:')}/data")
    return path.read_bytes()


def copy(origin: Registry, repository: str, web: WebServer) -> list[str]:
    """Serve the image under tag 1 as a mirror does; return its blobs' paths, the layers' first."""
    links = f"storage/**/repositories/{repository}/_manifests/tags/1/current/link"
    [link] = origin.directory.glob(links)
    text = stored(origin, link.read_text())
    web.put(f"/v2/{repository}/manifests/1", text, content_type=MANIFEST)
    manifest = json.loads(text)
    digests = [blob["digest"] for blob in (*manifest["layers"], manifest["config"])]
    paths = {f"/v2/{repository}/blobs/{digest}": stored(origin, digest) for digest in digests}
    for path, data in paths.items():
        web.put(path, data, etag='"1"')
    return list(paths)


@pytest.mark.parametrize("kind", ["cut", "missing"])
def test_a_blob_that_the_mirror_does_not_have_comes_from_the_next(
    node: Node, web: WebServer, origin: Registry, repository: str, sif: bytes, kind: str
) -> None:
    host = f"127.0.0.1:{web.port}"
    path = copy(origin, repository, web)[0]
    web.remove(path)
    if kind == "cut":
        wrong_length = {"Content-Length": str(len(sif))}
        web.handle(path, lambda _: Answer(200, wrong_length, sif[:100_000]))
    node.configure(conf(origin, host))
    staged(node, 1, f"container:oras://{origin.host}/{repository}:1", sif, how="fetched")
    assert read_from(origin, repository) == ["blobs"]
    assert f"mirror {host}: " in node.log()


class Wrong(NamedTuple):
    """What a mirror makes of a blob, how it sends it, and what the log says of that."""

    data: Callable[[bytes], bytes]
    fault: Fault
    words: str


WRONG = {
    "first byte": Wrong(bytes, Corrupt(0), "its sha256 is "),
    "last byte": Wrong(bytes, Corrupt(-1), "its sha256 is "),
    "last byte, no length": Wrong(lambda data: data[:-1] + b"?", Chunked(), "its sha256 is "),
    "short": Wrong(lambda data: data[:-7], Ok(), "bytes, expected "),
    "short, no length": Wrong(lambda data: data[:-7], NoLength(), "bytes, expected "),
    "long": Wrong(lambda data: data + b"more", Ok(), "bytes, expected "),
    "long, no length": Wrong(lambda data: data + b"more", Chunked(), "bytes, expected "),
    "endless": Wrong(bytes, Endless(), "bytes, expected "),
    "more announced": Wrong(bytes, WrongLength(+7), "bytes, expected "),
    "fewer announced": Wrong(bytes, WrongLength(-7), "bytes, expected "),
    "empty": Wrong(lambda _: b"", Ok(), "bytes, expected "),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_comes_from_the_next(
    node: Node, web: WebServer, origin: Registry, repository: str, sif: bytes, kind: str
) -> None:
    host = f"127.0.0.1:{web.port}"
    path = copy(origin, repository, web)[0]
    web.put(path, WRONG[kind].data(sif), etag='"1"')
    web.script(path, [WRONG[kind].fault])
    node.configure(conf(origin, host))
    staged(node, 1, f"container:oras://{origin.host}/{repository}:1", sif, how="fetched")
    assert read_from(origin, repository) == ["blobs"]
    assert web.count(path=path) == 1  # who has something wrong has it the next time, too
    [told] = [line for line in node.log().splitlines() if f"mirror {host}: " in line]
    assert f"{path} is not what was announced: " in told
    assert WRONG[kind].words in told


FILES = {"etc/release": b"base 1\n", "noise": os.urandom(300_000)}
MORE = {"top": b"top 1\n"}


@pytest.fixture
def in_layers(origin: Registry) -> str:
    """A repository of this test's own, with an image in two layers, the larger one the lowest."""
    if missing := images.missing():
        pytest.skip(missing)
    name = f"lab/{uuid4().hex}"
    push_image(origin, name, "1", [make_layer(FILES), make_layer(MORE)])
    return name


def holds_all(node: Node, job: int, comment: str) -> None:
    """Stage the image in layers, and check that it has the content of both."""
    task = node.stage(job, comment)
    assert task.code == 0, (task.printed, node.log())
    files = {**FILES, **MORE}
    assert {name: read_from_image(task.image, name) for name in files} == files
    assert node.leftovers() == []


@pytest.mark.parametrize("which", [0, 1, 2], ids=["lower", "upper", "config"])
@pytest.mark.parametrize("kind", ["first byte", "last byte", "short", "long, no length"])
def test_a_wrong_part_of_an_image_comes_from_the_next(
    node: Node, web: WebServer, origin: Registry, in_layers: str, which: int, kind: str
) -> None:
    host = f"127.0.0.1:{web.port}"
    paths = copy(origin, in_layers, web)
    good = stored(origin, paths[which].rpartition("/")[2])
    web.put(paths[which], WRONG[kind].data(good), etag='"1"')
    web.script(paths[which], [WRONG[kind].fault])
    node.configure(conf(origin, host))
    holds_all(node, 1, f"container:docker://{origin.host}/{in_layers}:1")
    read = [line.path for line in origin.blob_gets() if f"/{in_layers}/" in line.path]
    assert paths[which] in read
    assert f"mirror {host}: " in node.log()
    assert web.count(path=paths[which]) == 1


def test_a_layer_that_is_wrong_everywhere(
    node: Node, web: WebServer, origin: Registry, in_layers: str
) -> None:
    with WebServer() as other:
        hosts = [f"127.0.0.1:{each.port}" for each in (web, other)]
        paths = copy(origin, in_layers, web)
        assert copy(origin, in_layers, other) == paths
        for each in (web, other):
            each.script(paths[0], [Corrupt(0)])
        node.configure(
            f"[registry {hosts[1]}]\ninsecure = yes\nmirrors = {hosts[0]}\n"
            f"[registry {hosts[0]}]\ninsecure = yes\n[stage]\nerror_ttl = 0\n"
        )
        comment = f"container:docker://{hosts[1]}/{in_layers}:1"
        refused(node, 1, comment, "Damaged", "layer 1 of 2", "digest")
        assert [each.count(path=paths[0]) for each in (web, other)] == [1, 1]
        assert node.images() == []
        # The other layer is kept: it is what it should be.
        assert [path.name[12:-5] for path in node.cache.glob("blobs/*")] == [paths[1][-64:]]
        holds_all(node, 2, comment)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("last byte", "is not what was announced: its sha256 is "),
        ("short", "is truncated: "),
        ("long, no length", "is longer than announced"),
    ],
)
def test_a_file_that_is_wrong_everywhere(
    node: Node,
    web: WebServer,
    origin: Registry,
    repository: str,
    sif: bytes,
    kind: str,
    words: str,
) -> None:
    with WebServer() as other:
        hosts = [f"127.0.0.1:{each.port}" for each in (web, other)]
        for each in (web, other):
            path = copy(origin, repository, each)[0]
            each.put(path, WRONG[kind].data(sif), etag='"1"')
            each.script(path, [WRONG[kind].fault])
        node.configure(
            f"[registry {hosts[1]}]\ninsecure = yes\nmirrors = {hosts[0]}\n"
            f"[registry {hosts[0]}]\ninsecure = yes\n"
        )
        comment = f"container:oras://{hosts[1]}/{repository}:1"
        refused(node, 1, comment, "Damaged", f"{repository}:1 {words}")
        assert [each.count(path=path) for each in (web, other)] == [1, 1]
    assert node.images() == []
    assert f"mirror {hosts[0]}: " in node.log()


def test_an_index_whose_manifest_is_another(
    node: Node, web: WebServer, origin: Registry, in_layers: str
) -> None:
    """A mirror may serve a manifest under a digest that is not its own one step further, too."""
    image = push_image(origin, in_layers, "image", [make_layer(FILES), make_layer(MORE)])
    digest = push_index(origin, in_layers, "1", [image])
    host = f"127.0.0.1:{web.port}"
    web.put(f"/v2/{in_layers}/manifests/1", stored(origin, digest))
    bad = f"/v2/{in_layers}/manifests/{image.digest}"
    web.put(bad, stored(origin, image.digest) + b"\n")
    node.configure(conf(origin, host))
    holds_all(node, 1, f"container:docker://{origin.host}/{in_layers}:1")
    assert web.count(path=bad) == 1
    assert "the registry sent something other than" in node.log()


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
