"""Make OCI images of layers from dictionaries of files, and push them to a registry.

OCI image specification 1.1: layer.md, config.md, manifest.md, image-index.md.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hpcimg.image.architecture import go_name
from tests.parts.daemon import PATH, missing_commands
from tests.parts.registry import MANIFEST, Registry

INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_BUSYBOX = Path("/bin/busybox")
# The beginning of a dynamically linked program, whose linker would have to be in the image too.
_LINKER = b"/ld-"


class Layer(NamedTuple):
    """A layer as it is stored. diff_id: the digest of its tar file, "sha256:..."."""

    media_type: str
    diff_id: str
    data: bytes


class Descriptor(NamedTuple):
    """An index's entry for a manifest; `parts` has the digests of its config and its layers."""

    digest: str
    size_bytes: int
    architecture: str
    parts: tuple[str, ...] = ()


def missing() -> str:
    """Return a sentence that says what this host lacks for images that run, or an empty string."""
    if missing := missing_commands("busybox", "zstd"):
        return missing
    if _LINKER in _BUSYBOX.read_bytes()[:4096]:
        return "busybox here is no static one (run tests/install-packages as root)"
    return ""


def program() -> bytes:
    """Return a program that runs in an empty image, under the name of what it does: cat, sh ..."""
    return _BUSYBOX.read_bytes()


def make_layer(files: Mapping[str, bytes], *, compression: str = "gzip") -> Layer:
    """Return a layer that holds the files, by name with directories; all may be run.

    A name such as "directory/.wh.name" takes the file out that a layer below has. compression:
    gzip, zstd, or "" for none. What is made of the same files is the same.
    """
    packed = io.BytesIO()
    write_tar(packed, files)
    tar = packed.getvalue()
    suffix = f"+{compression}" if compression else ""
    return Layer(_LAYER + suffix, _digest(tar), _compressed(tar, compression))


def write_tar(file: BinaryIO, files: Mapping[str, bytes]) -> None:
    """Write the tar file of a layer, with root as the owner of all and directories before files."""
    directories: set[str] = set()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            for parent in reversed([str(path) for path in Path(name).parents][:-1]):
                if parent not in directories:
                    directories.add(parent)
                    directory = tarfile.TarInfo(parent)
                    directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(directory)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))


def push_image(
    registry: Registry,
    repository: str,
    tag: str,
    layers: Sequence[Layer],
    *,
    architecture: str = "",
    settings: Mapping[str, object] | None = None,
) -> Descriptor:
    """Push an image, whose lowest layer is the first, and return what an index needs of it.

    architecture: Go's name, by default this machine's. settings: the config's "config", such as
    Env and Entrypoint.
    """
    architecture = architecture or go_name()
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": dict(settings or {"Env": ["PATH=/bin"]}),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created_by": "a test"} for _ in layers],  # as all real ones have
    }
    blobs = [(CONFIG, json.dumps(config).encode())]
    blobs += [(layer.media_type, layer.data) for layer in layers]
    parts = [_push(registry, repository, *blob) for blob in blobs]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": parts[0],
        "layers": parts[1:],
    }
    digest = registry.push_manifest(repository, tag, manifest)
    digests = tuple(str(part["digest"]) for part in parts)
    return Descriptor(digest, len(json.dumps(manifest)), architecture, digests)


def push_index(registry: Registry, repository: str, tag: str, images: Sequence[Descriptor]) -> str:
    """Push an index of images for several architectures; return its digest."""
    manifests = [
        {
            "mediaType": MANIFEST,
            "digest": image.digest,
            "size": image.size_bytes,
            "platform": {"architecture": image.architecture, "os": "linux"},
        }
        for image in images
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    return registry.push_manifest(repository, tag, index)


def _push(registry: Registry, repository: str, media_type: str, data: bytes) -> dict[str, object]:
    digest = registry.push_blob(repository, io.BytesIO(data))
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _compressed(tar: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(tar, mtime=0)
    if compression == "zstd":
        argv = ["zstd", "--quiet", "--stdout"]
        env = {"PATH": PATH}
        return subprocess.run(argv, input=tar, stdout=subprocess.PIPE, env=env, check=True).stdout
    return tar


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
