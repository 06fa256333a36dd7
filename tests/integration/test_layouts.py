"""Images in layers on a file system: OCI layouts and archives, and what `docker save` writes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcimg.decompression import ZSTD_MAGIC
from hpcimg.errors import NotAnImage
from hpcimg.sources.oci import imagefiles
from hpcimg.sources.oci.imagefiles import ImageFiles
from tests.integration.checks import let_pass, refused, staged
from tests.parts import images, layouts
from tests.parts.images import read_from_image
from tests.parts.layers import zstd
from tests.parts.layouts import SCHEMES, config_of, in_blobs, write_archive
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
    """A copy of these that a test can change."""
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
    refused(node, 1, comment, "BadReference", "several images", "lab/tool:1.0", "Append :NAME")
    holds(node.stage(2, f"{comment}:lab/tool:1.0"))


def test_signatures_beside_an_image_are_none(node: Node, images_at: Path) -> None:
    """As `cosign save` puts them there, without names."""
    index, blobs = images_at / "oci" / "index.json", images_at / "oci" / "blobs" / "sha256"
    fields = json.loads(index.read_text())
    config = {"digest": f"sha256:{'0' * 64}", "size": 2}
    payload = {**config, "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json"}
    signature = json.dumps({"schemaVersion": 2, "config": config, "layers": [payload]}).encode()
    digest = hashlib.sha256(signature).hexdigest()
    (blobs / digest).write_bytes(signature)
    (blobs / digest).chmod(0o644)
    fields["manifests"][0]["annotations"] = {"io.containerd.image.name": "lab.example/tool:1.0"}
    fields["manifests"].append({"digest": f"sha256:{digest}", "size": len(signature)})
    index.write_text(json.dumps(fields))
    holds(node.stage(1, f"container:oci:{images_at}/oci"))
    holds(node.stage(2, f"container:oci:{images_at}/oci:lab.example/tool:1.0"))


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


@pytest.mark.parametrize("is_layer", [True, False])
def test_a_damaged_blob_of_a_layout(node: Node, images_at: Path, is_layer: bool) -> None:
    """Asking again does not change it."""
    for blob in (images_at / "oci" / "blobs" / "sha256").iterdir():
        data = bytearray(blob.read_bytes())
        if (data[:1] != b"{") == is_layer:
            data[-1] ^= 0xFF
            blob.write_bytes(data)
    refused(node, 1, f"container:oci:{images_at}/oci", "NotAnImage", "digest", "Save the image")


@pytest.mark.parametrize("scheme", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_compressed_archive(
    node: Node, images_at: Path, pack: Callable[[bytes], bytes], scheme: str
) -> None:
    packed = images_at / "packed"
    packed.write_bytes(pack((images_at / scheme).read_bytes()))
    packed.chmod(0o644)
    holds(node.stage(1, f"container:{scheme}:{packed}"))
    os.truncate(packed, packed.stat().st_size * 2 // 3)
    refused(node, 2, f"container:{scheme}:{packed}", "NotAnImage", "damaged", "Save the image")


def test_a_compressed_archive_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagefiles, "zstd", None)
    path = tmp_path / "x.tar"
    path.write_bytes(ZSTD_MAGIC + b"...")
    with pytest.raises(NotAnImage, match="`zstd -d`"):
        ImageFiles(str(path), f"docker-archive:{path}", archive=True)


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


# docker-archive: in the ways of those who write it


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
@pytest.mark.parametrize("how", ["crane", "docker 25", "no digest"])
def test_packed_layers(node: Node, open_directory: Path, compression: str, how: str) -> None:
    """A file's digest and the digest of what comes out of it are different things."""
    layers = [make_layer(files, compression=compression) for files in (BASE, TOP)]
    named = {
        "crane": lambda layer: in_blobs(layer).rpartition("/")[2] + ".tar.gz",
        "docker 25": in_blobs,
        "no digest": lambda layer: f"{layers.index(layer)}/layer.tar",
    }[how]
    files = {named(layer): layer.data for layer in layers}
    comment = write_archive(open_directory / "x.tar", files, config=config_of(*layers))
    holds(node.stage(1, comment))


def test_layers_that_are_links_and_names_that_begin_with_a_dot(
    node: Node, open_directory: Path
) -> None:
    base, top = [make_layer(files, compression="") for files in (BASE, TOP)]
    comment = write_archive(
        open_directory / "x.tar",
        {"aa.tar": base.data, "bb/layer.tar": top.data},
        config=config_of(base, top),
        links={"aa/layer.tar": "../aa.tar"},
        lead="./",
        names=["aa/layer.tar", "./bb/layer.tar"],
    )
    holds(node.stage(1, comment))


@pytest.mark.parametrize(
    ("written", "named", "found"),
    [
        ("lab/tool:1.0", "lab/tool:1.0", True),
        ("docker.io/lab/tool:1.0", "lab/tool:1.0", True),
        ("tool:latest", "tool", True),
        ("tool:latest", "docker.io/library/tool", True),
        ("localhost/tool:1", "localhost/tool:1", True),
        ("lab/tool:1.0", "lab/tool:2.0", False),
        ("lab/tool:1.0", "@0", True),
        ("lab/tool:1.0", "@1", False),
        ("a name with blanks", "tool", False),
    ],
)
def test_how_an_image_is_named(
    node: Node, open_directory: Path, written: str, named: str, found: bool
) -> None:
    layer = make_layer({**BASE, **TOP})
    comment = write_archive(
        open_directory / "x.tar", {"1.tar": layer.data}, config=config_of(layer), tags=[written]
    )
    if found:
        holds(node.stage(1, f"{comment}:{named}"))
    else:
        refused(node, 1, f"{comment}:{named}", "NotFound", f"no image '{named}'", written)


def test_another_kind_of_archive(node: Node, images_at: Path) -> None:
    refused(
        node, 1, f"container:docker-archive:{images_at}/oci-archive", "NotAnImage", "oci-archive:"
    )
    refused(
        node,
        2,
        f"container:oci-archive:{images_at}/docker-archive",
        "NotAnImage",
        "docker-archive:",
    )


# Whose image it is


@pytest.mark.parametrize("compression", ["", "gzip"])
def test_somebody_elses_config_with_another_layer_is_another_image(
    node: Node, open_directory: Path, compression: str
) -> None:
    """A config is public: combining it with another layer gains nothing."""
    base, top, evil = [
        make_layer(files, compression=compression) for files in (BASE, TOP, {"bin/tool": b"evil\n"})
    ]
    config = config_of(base, top)
    lying = write_archive(
        open_directory / "evil.tar",
        {in_blobs(base): base.data, in_blobs(top): evil.data},
        config=config,
    )
    # It is an image of its own, or none where its layers are compared with its config.
    attack = node.stage(1, lying)
    honest = write_archive(
        open_directory / "x.tar",
        {in_blobs(base): base.data, in_blobs(top): top.data},
        config=config,
    )
    task = node.stage(2, honest)
    holds(task)
    assert attack.exports != task.exports
    # And so it is where the honest image is there already.
    assert node.stage(3, lying).exports == attack.exports


def test_what_an_earlier_release_kept_by_the_digest_of_a_config_is_not_handed_out(
    node: Node, images_at: Path
) -> None:
    comment = f"container:docker-archive:{images_at}/docker-archive"
    good = node.stage(1, comment)
    [meta] = node.cache.glob("meta/layers-*.json")
    fields = json.loads(meta.read_text())
    old = "sha256-" + "0" * 64 + "-" + fields["extension"]
    (node.cache / "meta" / f"{old}.json").write_text(json.dumps({**fields, "key": old}))
    good.image.rename(good.image.with_name(f"{old}.{fields['extension']}"))
    [ref] = node.cache.glob("refs/*.json")
    ref.write_text(json.dumps({**json.loads(ref.read_text()), "key": old}))
    node.reboot()
    task = node.stage(2, comment)
    holds(task)
    assert task.image.name.startswith("layers-")


def test_an_archive_that_was_written_anew(node: Node, open_directory: Path) -> None:
    for job, files in enumerate(({"which": b"1"}, {"which": b"2"}), start=1):
        layer = make_layer(files)
        path = open_directory / "x.tar"
        comment = write_archive(path, {"1.tar": layer.data}, config=config_of(layer))
        assert read_from_image(node.stage(job, comment).image, "which") == files["which"]
