"""Images in layers from a real registry: fetched in parallel, cached, converted to one file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import resource
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from hpcimg.cache import inflight
from hpcimg.cache.paths import Layout
from hpcimg.image.architecture import go_name
from tests.integration.checks import failed, let_pass, refused, staged, together
from tests.integration.conftest import MakeSif, Start
from tests.parts import images, layers
from tests.parts.daemon import PartError, wait_until
from tests.parts.images import read_from_image
from tests.parts.node import Node, Task
from tests.parts.ociimages import Layer, make_layer, push_image, push_index
from tests.parts.oldsquashfs import NodeWithOldSquashfs
from tests.parts.processes import descendants, gone
from tests.parts.registry import MANIFEST, Registry
from tests.parts.webserver import WebServer

HOUR = 3600
NEEDS_OLD = pytest.mark.skipif(
    bool(NodeWithOldSquashfs.missing()), reason=NodeWithOldSquashfs.missing() or "-"
)


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """One registry for all tests, with a repository for each."""
    if missing := Registry.missing() or images.missing():
        pytest.skip(missing)
    with Registry() as registry:
        yield registry


class Repository:
    """A repository for one test."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.name = f"test/{uuid4().hex}"

    def push(self, *layers: Layer, tag: str = "1", architecture: str = "") -> str:
        """Push an image of these layers; return its manifest's digest."""
        return push_image(self.registry, self.name, tag, layers, architecture=architecture).digest

    def comment(self, version: str = ":1", scheme: str = "docker") -> str:
        return f"container:{scheme}://{self.registry.host}/{self.name}{version}"

    def blob_gets(self, layer: Layer) -> int:
        """Return how often a layer was read from here."""
        return len(
            [r for r in self.registry.blob_gets(digest_of(layer)) if f"/{self.name}/" in r.path]
        )

    def damage(self, layer: Layer, at: int) -> None:
        """Change one byte of what the registry has stored."""
        [path] = self.registry.directory.glob(f"storage/**/{digest_of(layer)[7:]}/data")
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)


@pytest.fixture
def repository(registry: Registry, node: Node) -> Repository:
    configure(node, registry)
    return Repository(registry)


def digest_of(layer: Layer) -> str:
    return f"sha256:{hashlib.sha256(layer.data).hexdigest()}"


def configure(
    node: Node, registry: Registry, settings: str = "[stage]\nformat = squashfs\n"
) -> None:
    node.configure(f"[registry {registry.host}]\ninsecure = yes\n{settings}")


def layer(files: Mapping[str, bytes], **options: str) -> Layer:
    """Make a layer unlike all others."""
    return make_layer({**files, f"unique/{uuid4().hex}": os.urandom(2000)}, **options)


def holds(task: Task, files: Mapping[str, bytes]) -> None:
    """Check that a job's image contains these files."""
    assert task.code == 0, task.printed
    found = {name: read_from_image(task.image, name) for name in files}
    assert found == files


BASE = {"etc/release": b"base 1\n", "etc/gone": b"still here\n", "bin/tool": b"old\n"}
TOP = {"bin/tool": b"new\n", "etc/.wh.gone": b""}
MERGED = {"etc/release": b"base 1\n", "bin/tool": b"new\n"}


def test_layers_become_one_file(repository: Repository, node: Node) -> None:
    digest = repository.push(layer(BASE), layer(TOP))
    task = node.stage(1, repository.comment())
    holds(task, MERGED)
    with pytest.raises(PartError, match="no file"):
        read_from_image(task.image, "etc/gone")
    [image] = node.record(1)["images"]
    assert image["source"] == "fetched"
    assert re.fullmatch("layers-sha256-[0-9a-f]{64}-squashfs", image["key"])
    meta = json.loads((node.cache / "meta" / f"{image['key']}.json").read_text())
    assert meta["source"] == digest
    assert task.image.suffix == ".squashfs"
    assert node.leftovers() == []
    staged(node, 2, repository.comment(), task.image.read_bytes(), how="hit")
    let_pass(node, 2 * HOUR)
    staged(node, 3, repository.comment(), task.image.read_bytes(), how="unchanged")


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_every_compression(repository: Repository, node: Node, compression: str) -> None:
    repository.push(layer(BASE, compression=compression))
    holds(node.stage(1, repository.comment()), BASE)


def test_the_next_version_moves_only_what_is_new(repository: Repository, node: Node) -> None:
    base, old, new = layer(BASE), layer({"version": b"1\n"}), layer({"version": b"2\n"})
    repository.push(base, old)
    repository.push(base, new, tag="2")
    holds(node.stage(1, repository.comment()), {**BASE, "version": b"1\n"})
    holds(node.stage(2, repository.comment(":2")), {**BASE, "version": b"2\n"})
    assert [repository.blob_gets(each) for each in (base, old, new)] == [1, 1, 1]
    status = node.hpcimg_json("status")["cache"]
    assert (status["images"], status["layers"]) == (2, 3)
    assert len(node.hpcimg_json("ls")["images"]) == 2


def test_a_layer_on_the_node_that_was_damaged_is_fetched_again(
    repository: Repository, node: Node
) -> None:
    base = layer(BASE)
    repository.push(base, layer({"version": b"1\n"}))
    repository.push(base, layer({"version": b"2\n"}), tag="2")
    node.stage(1, repository.comment())
    [blob] = node.cache.glob(f"blobs/*{digest_of(base)[7:]}*")
    blob.chmod(0o644)
    blob.write_bytes(b"x" * len(base.data))
    holds(node.stage(2, repository.comment(":2")), {**BASE, "version": b"2\n"})
    assert repository.blob_gets(base) == 2


def test_many_jobs_at_once(repository: Repository, node: Node, start: Start) -> None:
    """One download of each layer, one conversion; two images that share a layer as well."""
    base, one, two = layer(BASE), layer({"version": b"1\n"}), layer({"version": b"2\n"})
    repository.push(base, one)
    repository.push(base, two, tag="2")
    comments = [repository.comment(f":{tag}") for tag in (1, 2, 1, 2, 1, 2)]
    for job, task in together(start, node, *comments).items():
        holds(task, {**BASE, "version": b"1\n" if job % 2 else b"2\n"})
    assert [repository.blob_gets(each) for each in (base, one, two)] == [1, 1, 1]
    assert len(node.images()) == 2
    assert node.leftovers() == []


def test_a_layer_that_comes_twice_in_an_image(repository: Repository, node: Node) -> None:
    base = layer(BASE)
    repository.push(base, layer(TOP), base)
    holds(node.stage(1, repository.comment()), BASE)
    assert repository.blob_gets(base) == 1


@pytest.mark.parametrize("scheme", ["docker", "oras"])
def test_a_tag_that_holds_a_sif_and_one_that_holds_layers(
    repository: Repository, node: Node, make_sif: MakeSif, tmp_path: Path, scheme: str
) -> None:
    """The media type decides, not the scheme."""
    data = make_sif()
    (tmp_path / "pushed.sif").write_bytes(data)
    repository.registry.push_sif(tmp_path / "pushed.sif", repository.name, "sif")
    repository.push(layer(BASE), tag="layers")
    staged(node, 1, repository.comment(":sif", scheme), data)
    holds(node.stage(2, repository.comment(":layers", scheme)), BASE)


def test_an_index_has_one_for_this_machine(repository: Repository, node: Node) -> None:
    pushed = [
        push_image(
            repository.registry, repository.name, name, [layer({"for": name.encode()})],
            architecture=name,
        )
        for name in ("s390x", go_name())
    ]  # fmt: skip
    push_index(repository.registry, repository.name, "all", pushed)
    push_index(repository.registry, repository.name, "other", pushed[:1])
    task = node.stage(1, repository.comment(":all"))
    holds(task, {"for": go_name().encode()})
    refused(node, 2, repository.comment(":other"), "WrongArchitecture", "it is for s390x")
    # Without an index the config says it, before a layer is fetched.
    refused(node, 3, repository.comment(":s390x"), "WrongArchitecture", "it was built for s390x")
    assert len(list(node.cache.glob("blobs/*"))) == 1
    pinned = repository.comment(f"@{pushed[1].digest}")
    staged(node, 4, pinned, task.image.read_bytes())


@pytest.mark.parametrize("at", [0, -1], ids=["first byte", "last byte"])
def test_a_layer_with_another_digest(repository: Repository, node: Node, at: int) -> None:
    good, bad = layer(BASE), layer({"big": os.urandom(300_000)})
    repository.push(good, bad)
    repository.damage(bad, at)
    refused(node, 1, repository.comment(), "Damaged", "layer 2 of 2", "digest")
    assert [path.name for path in node.cache.glob("blobs/*")] == [
        f"blob-{digest_of(good).replace(':', '-')}.blob"
    ]
    repository.damage(bad, at)  # and back
    holds(node.stage(2, repository.comment()), BASE)
    assert (repository.blob_gets(good), repository.blob_gets(bad)) == (1, 2)


def test_a_layer_that_is_none(repository: Repository, node: Node) -> None:
    junk = Layer("application/vnd.oci.image.layer.v1.tar+gzip", "sha256:" + "0" * 64, b"junk")
    repository.push(layer(BASE), junk)
    refused(node, 1, repository.comment(), "NotAnImage", "layer 2")
    assert node.images() == []


def test_a_layer_that_is_not_that_of_the_configuration(repository: Repository, node: Node) -> None:
    good, other = layer(BASE), layer(TOP)
    repository.push(good, good._replace(data=other.data))
    refused(node, 1, repository.comment(), "NotAnImage", "layer 2", "its digest is", good.diff_id)
    assert node.images() == []
    assert node.leftovers() == []


def _layers(count: int, **fields: object) -> list[dict[str, object]]:
    return [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": f"sha256:{number:064x}",
            "size": 10,
            **fields,
        }
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": []}, "no layers"),
        ({"layers": _layers(300)}, "300 layers"),
        ({"layers": _layers(1, size="10")}, "no size that can be one"),
        ({"layers": _layers(1, size=-1)}, "no size that can be one"),
        ({"layers": [*_layers(1), *_layers(1, size=11)]}, "one layer with two sizes"),
        ({"layers": _layers(1, mediaType="application/vnd.cncf.helm.chart")}, "helm"),
        (
            {"layers": _layers(1, mediaType="application/vnd.oci.image.layer.v1.tar+encrypted")},
            "encrypted",
        ),
        ({"layers": _layers(1), "config": None}, "names no config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_that_is_wrong(
    web: WebServer, node: Node, fields: dict[str, object], words: str
) -> None:
    """From a server that, unlike the real one, accepts any manifest."""
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, **fields}
    url = web.put("/v2/x/manifests/1", json.dumps(manifest).encode())
    host = urlsplit(url).netloc
    node.configure(f"[registry {host}]\ninsecure = yes\n")
    refused(node, 1, f"container:docker://{host}/x:1", "NotAnImage", words)


@pytest.mark.parametrize("has_it", [True, False])
def test_a_foreign_layer_is_fetched_where_the_registry_has_it(
    repository: Repository, node: Node, has_it: bool
) -> None:
    """As Docker pushes what is told to be distributable nowhere."""
    base, foreign = layer(BASE), layer({"foreign": b"1"})
    foreign = foreign._replace(
        media_type="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
    repository.push(base, foreign)
    if has_it:
        holds(node.stage(1, repository.comment()), {**BASE, "foreign": b"1"})
        return
    [link] = repository.registry.directory.glob(
        f"storage/**/{repository.name}/_layers/sha256/{digest_of(foreign)[7:]}/link"
    )
    link.unlink()
    refused(node, 1, repository.comment(), "NotFound", "there is nothing at")


def test_a_site_that_changes_the_format(repository: Repository, node: Node) -> None:
    repository.push(layer(BASE))
    first = node.stage(1, repository.comment())
    configure(node, repository.registry, "[stage]\nformat = sif\n")
    second = node.stage(2, repository.comment())
    assert (first.image.suffix, second.image.suffix) == (".squashfs", ".sif")
    assert first.image.exists()
    holds(second, BASE)
    assert len(node.images()) == 2


@pytest.mark.parametrize("kind", [Node, pytest.param(NodeWithOldSquashfs, marks=NEEDS_OLD)])
def test_a_conversion_that_is_killed(
    registry: Registry, open_directory: Path, start: Start, kind: type[Node]
) -> None:
    """Nothing is left over, and the next job need not fetch the layers again."""
    node, repository = kind(open_directory), Repository(registry)
    configure(node, registry)
    big = layer({"big": os.urandom(40_000_000)})
    repository.push(big)
    layout = Layout(str(node.cache), str(node.state))
    prolog = start(node, 1, repository.comment())
    wait_until(
        lambda: any(work["phase"] == "converting" for work in inflight.under_way(layout)),
        what="the conversion",
    )
    tools = descendants(prolog.pid)
    os.killpg(prolog.pid, signal.SIGKILL)
    wait_until(lambda: all(map(gone, tools)), what="the end of the tools")
    holds(node.stage(2, repository.comment()), {})
    assert repository.blob_gets(big) == 1
    assert node.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which the limit is not for")
def test_an_account_with_as_many_processes_as_it_may(repository: Repository, node: Node) -> None:
    """Whoever keeps it so busy: it is no bug, and no fault of the node's."""
    repository.push(layer(BASE), layer(TOP))
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, before[1]))
    try:
        task = node.stage(1, repository.comment())
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, before)
    failed(node, 1, task, "Interrupted", "could not be fetched now", "thread")


def test_a_fetch_that_fails_keeps_the_layers_that_came(repository: Repository, node: Node) -> None:
    small, big = layer(BASE), layer({"big": os.urandom(300_000)})
    repository.push(small, big)
    repository.damage(big, 100)
    refused(node, 1, repository.comment(), "Damaged")
    assert len(list(node.cache.glob("blobs/*"))) == 1


def test_too_large(repository: Repository, node: Node) -> None:
    repository.push(layer({"big": os.urandom(2_000_000)}))
    configure(node, repository.registry, "[policy]\nmax_image_size = 1M\n")
    refused(node, 1, repository.comment(), "TooLarge", "up to 1.0 MiB")
    assert list(node.cache.glob("blobs/*")) == []


def test_layers_are_evicted_like_images(repository: Repository, node: Node) -> None:
    repository.push(layer({"big": os.urandom(2_000_000)}))
    task = node.stage(1, repository.comment())
    configure(node, repository.registry, "[cache]\nmax_size = 3M\nmin_age = 0\n")
    node.epilog(1)
    assert list(node.cache.glob("blobs/*")) == []
    assert task.image.exists()


def test_an_image_in_layers_has_no_signature(repository: Repository, node: Node) -> None:
    base = layer(BASE)
    repository.push(base)
    configure(node, repository.registry, "[policy]\nverify = sif\n")
    refused(node, 1, repository.comment(), "NotAllowed", "in layers", "[policy] verify")
    assert repository.blob_gets(base) == 0


def test_a_program_is_told_which_manifest_it_is(
    repository: Repository, node: Node, open_directory: Path
) -> None:
    digest = repository.push(layer(BASE))
    program = open_directory / "ask"
    program.write_text(f'#!/bin/sh\n[ "$2" = {digest} ] || {{ echo "it is $2" >&2; exit 1; }}\n')
    program.chmod(0o755)
    configure(node, repository.registry, f"[policy]\nverify = {program}\n")
    holds(node.stage(1, repository.comment()), BASE)
    repository.push(layer(TOP), tag="2")
    refused(node, 2, repository.comment(":2"), "NotAllowed", "it is sha256:")


# Where mksquashfs reads no archives


@NEEDS_OLD
@pytest.mark.parametrize("format", ["sif", "squashfs"])
def test_an_old_mksquashfs(registry: Registry, open_directory: Path, format: str) -> None:
    node = NodeWithOldSquashfs(open_directory)
    configure(node, registry, f"[stage]\nformat = {format}\n")
    repository = Repository(registry)
    archive = layers.tar(
        layers.directory("shut", mode=0), layers.file("shut/x", b"1", mode=0o4111),
        layers.file("bin/tool", b"old"), layers.file("etc/gone"),
    )  # fmt: skip
    upper = layer(TOP)
    diff_id = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    repository.push(upper._replace(data=gzip.compress(archive), diff_id=diff_id), upper)
    task = node.stage(1, repository.comment())
    holds(task, {"bin/tool": b"new\n", "shut/x": b"1"})
    with pytest.raises(PartError, match="no file"):
        read_from_image(task.image, "etc/gone")
    modes = {line.split()[-1]: line.split()[0] for line in layers.listing(task.image)}
    assert modes["squashfs-root/shut"] == "d---------"
    assert modes["squashfs-root/shut/x"] == "---s--x--x"
    assert task.image.suffix == f".{format}"
    assert node.leftovers() == []
