"""One image in all formats for file systems.

Written by skopeo, or as an archive of Docker's with anything in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcimg.image.architecture import go_name
from tests.parts.daemon import PATH, missing_commands
from tests.parts.ociimages import Layer
from tests.parts.registry import Registry

SCHEMES = ("oci", "oci-archive", "docker-archive")


def missing() -> str:
    """Return a sentence that says what this host lacks to write them, or an empty string."""
    return missing_commands("skopeo")


def save(registry: Registry, name: str, directory: Path) -> None:
    """Copy an image, "repository:tag", to directory/SCHEME for each scheme; all may read it."""
    for scheme in SCHEMES:
        to = f"{scheme}:{directory}/{scheme}:{name}"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
            + [f"docker://{registry.host}/{name}", to],
            check=True,
            env={"PATH": PATH, "HOME": "/nonexistent"},
        )
    subprocess.run(["chmod", "-R", "a+rX", str(directory)], check=True)


def write_archive(
    path: Path,
    layers: Mapping[str, bytes],
    *,
    config: bytes,
    links: Mapping[str, str] | None = None,
    lead: str = "",
    names: Sequence[str] | None = None,
    tags: Sequence[str] = ("lab/tool:1.0",),
) -> str:
    """Write an archive as `docker save` does, from files by name; return the comment for it."""
    listed = [{"Config": "c.json", "RepoTags": list(tags), "Layers": list(names or layers)}]
    files = {"c.json": config, **layers, "manifest.json": json.dumps(listed).encode()}
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(lead + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(lead + name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    path.chmod(0o644)
    return f"container:docker-archive:{path}"


def config_of(*layers: Layer) -> bytes:
    """Return the config of an image with these layers."""
    rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    return json.dumps({"architecture": go_name(), "os": "linux", "rootfs": rootfs}).encode()


def in_blobs(layer: Layer) -> str:
    """Return the name of a layer in archives of newer Docker releases, by its digest."""
    return f"blobs/sha256/{hashlib.sha256(layer.data).hexdigest()}"
