"""Unpack an image with umoci, as Apptainer does."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hpcimg.image.architecture import go_name
from tests.parts.daemon import PATH, missing_commands
from tests.parts.ociimages import CONFIG
from tests.parts.registry import MANIFEST

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_GZIP = b"\x1f\x8b"
_UMASK = 0o022


def missing() -> str:
    """Return a sentence that says what this host lacks for it, or an empty string."""
    return missing_commands("umoci")


def version() -> tuple[int, ...]:
    """Return the first two numbers of its version."""
    said = subprocess.run(
        ["umoci", "--version"], env={"PATH": PATH}, capture_output=True, text=True, check=True
    )
    found = re.match(r"umoci version (\d+)\.(\d+)", said.stdout)
    assert found, said.stdout
    return tuple(map(int, found.groups()))


class Refused(Exception):
    """umoci refuses the image; the text says why."""


def unpack(directory: Path, layers: Sequence[bytes], archives: Sequence[bytes]) -> Path:
    """Unpack layers, whose archives are said in the configuration; return where the files are.

    As root, as nobody else may make devices. `directory` is an empty one. Raises Refused.
    """
    layout, root = directory / "layout", directory / "root"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(media_type: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in archives]
    config = {
        "architecture": go_name(),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(CONFIG, json.dumps(config).encode()),
        "layers": [blob(_LAYER + "+gzip" * data.startswith(_GZIP), data) for data in layers],
    }
    named = {"org.opencontainers.image.ref.name": "1"}
    entry = {**blob(MANIFEST, json.dumps(manifest).encode()), "annotations": named}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    done = subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:1", str(root)],
        env={"PATH": PATH, "HOME": str(directory)},
        capture_output=True,
        text=True,
        errors="backslashreplace",
        umask=_UMASK,
        check=False,
    )
    if done.returncode:
        raise Refused(done.stderr.strip())
    return root
