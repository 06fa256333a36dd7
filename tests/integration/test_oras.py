"""SIF images in a real OCI registry."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.checks import failed, let_pass, refused, staged, together
from tests.integration.conftest import MakeSif, Start
from tests.parts.node import Node
from tests.parts.registry import MANIFEST, Registry, Request

HOUR = 3600


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """One registry for all tests, with repositories for each."""
    if missing := Registry.missing():
        pytest.skip(missing)
    with Registry() as registry:
        yield registry


class Repository:
    """A repository for one test."""

    def __init__(self, registry: Registry, directory: Path) -> None:
        self.name = f"test/{uuid4().hex}"
        self._registry = registry
        self._directory = directory
        self._seen = 0

    def push(self, data: bytes, tag: str = "1") -> str:
        """Push an image; return the digest of its manifest."""
        path = self._directory / "pushed.sif"
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


def kinds(requests: list[Request]) -> list[str]:
    """Return what was asked for: manifests and blobs."""
    return [request.path.split("/")[-2] for request in requests]


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
    # With a tag beside it, the digest counts: it is the same image by another spelling.
    staged(node, 4, repository.comment(f":no-such-tag@{digest}"), sif, how="hit")
    assert repository.asked() == []


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
    refused(node, 1, repository.comment(), "NotAnImage", "layer 1")


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
    assert "serving the image cached 1 h ago" in node.log()
    let_pass(node, 61)
    staged(node, 4, repository.comment(), sif, how="unchanged")


def push_index(registry: Registry, repository: Repository, **digests: str) -> None:
    """Push an index as tag `1`, with the manifest of each processor."""
    entries = [
        {"mediaType": MANIFEST, "digest": digest, "size": 1, "platform": {"architecture": name}}
        for name, digest in digests.items()
    ]
    media_type = "application/vnd.oci.image.index.v1+json"
    content = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
    registry.push_manifest(repository.name, "1", content)


def test_an_index_of_several_processors(
    node: Node, registry: Registry, repository: Repository, sif: bytes
) -> None:
    digest = repository.push(sif, "here")
    push_index(registry, repository, amd64=digest, arm64=digest, s390x=digest)
    staged(node, 1, repository.comment(), sif, how="fetched")
    let_pass(node, 2 * HOUR)
    repository.asked()
    staged(node, 2, repository.comment(), sif, how="unchanged")
    assert len(repository.asked()) == 1


def test_an_index_without_this_processor(
    node: Node, registry: Registry, repository: Repository, sif: bytes
) -> None:
    digest = repository.push(sif, "here")
    push_index(registry, repository, mips=digest, riscv64=digest)
    words = ("has no image for this machine", "it is for mips, riscv64")
    refused(node, 1, repository.comment(), "WrongArchitecture", *words)


def test_a_registry_that_is_blocked_is_so_for_who_has_its_image(
    node: Node, registry: Registry, repository: Repository, sif: bytes
) -> None:
    repository.push(sif)
    staged(node, 1, repository.comment(), sif, how="fetched")
    staged(node, 2, repository.comment(), sif, how="hit")
    blocked = f'[[registry]]\nlocation = "{registry.host}"\nblocked = true\n'
    file = node.directory / "registries.conf"
    file.write_text(blocked)
    refused(node, 3, repository.comment(), "NotAllowed", "is blocked")
    file.unlink()
    staged(node, 4, repository.comment(), sif, how="hit")
    drop_in = node.directory / "registries.conf.d" / "site.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(blocked)
    refused(node, 5, repository.comment(), "NotAllowed", "is blocked")
