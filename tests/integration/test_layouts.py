"""Images in layers on a file system: OCI layouts and archives, and what `docker save` writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.parts import images, layouts
from tests.parts.images import read_from_image
from tests.parts.layouts import SCHEMES
from tests.parts.node import Node, Task
from tests.parts.ociimages import make_layer, push_image
from tests.parts.private import check_private
from tests.parts.registry import Registry

HOUR = 3600
BASE = {"etc/release": b"base 1\n", "etc/gone": b"still here\n"}
TOP = {"bin/tool": b"new\n", "etc/.wh.gone": b""}
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one image in all forms, by the names of the schemes, written by skopeo."""
    if missing := layouts.missing() or Registry.missing() or images.missing():
        pytest.skip(missing)
    directory = tmp_path_factory.mktemp("made")
    with Registry() as registry:
        layers = [make_layer(files) for files in (BASE, TOP)]
        push_image(registry, "lab/tool", "1.0", layers, settings={"WorkingDir": "/data"})
        layouts.save(registry, "lab/tool:1.0", directory)
    return directory


@pytest.fixture
def images_at(made: Path, open_directory: Path) -> Path:
    """A copy of those that a test may change."""
    for scheme in SCHEMES:
        copy = shutil.copytree if scheme == "oci" else shutil.copy
        copy(made / scheme, open_directory / scheme)
    subprocess.run(["chmod", "-R", "a+rX", str(open_directory)], check=True)
    return open_directory


def holds(task: Task) -> None:
    assert task.code == 0, task.printed
    assert read_from_image(task.image, "etc/release") == b"base 1\n"
    assert read_from_image(task.image, "bin/tool") == b"new\n"


@pytest.mark.parametrize("name", ["", ":lab/tool:1.0"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_image_arrives(node: Node, images_at: Path, scheme: str, name: str) -> None:
    if scheme == "docker-archive" and name:
        name = ":docker.io/lab/tool:1.0"
    comment = f"container:{scheme}:{images_at}/{scheme}{name}"
    task = node.stage(1, comment)
    holds(task)
    let_pass(node, 2 * HOUR)
    staged(node, 2, comment, task.image.read_bytes(), how="unchanged")
    assert node.leftovers() == []


def test_the_same_image_in_two_forms_is_one(node: Node, images_at: Path) -> None:
    task = node.stage(1, f"container:oci:{images_at}/oci")
    staged(node, 2, f"container:oci-archive:{images_at}/oci-archive", task.image.read_bytes())
    assert len(node.images()) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_name_that_is_not_there(node: Node, images_at: Path, scheme: str) -> None:
    comment = f"container:{scheme}:{images_at}/{scheme}:other"
    refused(node, 1, comment, "NotFound", "no image 'other'", "lab/tool:1.0")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_such_place(node: Node, open_directory: Path, scheme: str) -> None:
    refused(node, 1, f"container:{scheme}:{open_directory}/none", "NotFound", "there is no file")


def test_several_images(node: Node, images_at: Path) -> None:
    index = images_at / "oci" / "index.json"
    fields = json.loads(index.read_text())
    other = {**fields["manifests"][0], "digest": "sha256:" + "0" * 64, "annotations": {}}
    fields["manifests"].append(other)
    index.write_text(json.dumps(fields))
    comment = f"container:oci:{images_at}/oci"
    refused(node, 1, comment, "BadReference", "several images", "lab/tool:1.0", "Write :NAME")
    holds(node.stage(2, f"{comment}:lab/tool:1.0"))


@pytest.mark.parametrize(
    ("scheme", "content", "words"),
    [
        ("oci-archive", b"no tar", "the archive is damaged"),
        ("docker-archive", b"\x1f\x8b\x08junk", "the archive is damaged"),
        ("docker-archive", b"", "the archive is damaged"),
    ],
)
def test_an_archive_that_is_none(
    node: Node, open_directory: Path, scheme: str, content: bytes, words: str
) -> None:
    (open_directory / "x.tar").write_bytes(content)
    refused(node, 1, f"container:{scheme}:{open_directory}/x.tar", "NotAnImage", words)


@pytest.mark.parametrize("scheme", ["oci-archive", "docker-archive"])
def test_an_archive_that_is_cut_short(node: Node, images_at: Path, scheme: str) -> None:
    path = images_at / scheme
    os.truncate(path, path.stat().st_size * 2 // 3)
    task = node.stage(1, f"container:{scheme}:{path}")
    assert task.code == 1
    assert "Traceback" not in node.log()
    assert node.record(1)["error"] in ("NotAnImage", "Damaged")


@pytest.mark.parametrize("scheme", ["oci-archive", "docker-archive"])
def test_another_file_in_the_archive(node: Node, images_at: Path, scheme: str) -> None:
    """An archive of the wrong kind, and links that lead out of it or round in a circle."""
    path = images_at / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, target in (("index.json", "/etc/passwd"), ("manifest.json", "manifest.json")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    refused(node, 1, f"container:{scheme}:{path}", "NotAnImage", "there is no")


def test_a_damaged_blob_of_a_layout(node: Node, images_at: Path) -> None:
    biggest = max(
        (images_at / "oci" / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size
    )
    data = bytearray(biggest.read_bytes())
    data[-1] ^= 0xFF
    biggest.write_bytes(data)
    refused(node, 1, f"container:oci:{images_at}/oci", "Damaged", "digest")


def test_a_compressed_archive(node: Node, images_at: Path) -> None:
    subprocess.run(["gzip", str(images_at / "docker-archive")], check=True)
    holds(node.stage(1, f"container:docker-archive:{images_at}/docker-archive.gz"))


@AS_ROOT
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_only_the_user_may_read(images_at: Path, scheme: str) -> None:
    """Read with the user's rights, and kept for that user alone, its layers as well."""
    node = Node(images_at, uid=1)
    for path in (images_at / scheme, *(images_at / scheme).rglob("*")):
        os.chown(path, 1, 1)
        path.chmod(0o700 if path.is_dir() else 0o600)
    comment = f"container:{scheme}:{images_at}/{scheme}"
    task = node.stage(1, comment)
    holds(task)
    kept = sorted((node.cache / "users" / "1").iterdir())
    assert len(kept) == 3
    assert {path.stat().st_uid for path in kept} == {0}
    # The layers are for root alone.
    assert sorted(path.stat().st_mode & 0o777 for path in kept) == [0o400, 0o400, 0o440]
    check_private(task.image, 1)
    assert list(node.cache.glob("images/*")) == list(node.cache.glob("blobs/*")) == []
    refused(Node(images_at, uid=2), 2, comment, "Forbidden", "permission denied")
