"""What must hold on a node, whatever has happened to it."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path

from tests.parts.node import Node

# In front an owner's uid and what is said of layers, behind what they were converted to.
_NAME = re.compile(
    r"(?:u\d+-)?(?:blob-|layers-)?sha256-([0-9a-f]{64})(-sif|-squashfs)?\.(?:sif|squashfs|blob)"
)


def check_images(node: Node) -> None:
    """Check that the cache contains only complete images, each with its meta file."""
    for path in node.images():
        try:
            _check_image(node, path)
        except FileNotFoundError:
            # Evicted while we looked, and the image goes before its meta file.
            assert not path.exists(), f"{path} has no meta file"


def _check_image(node: Node, path: Path) -> None:
    name = _NAME.fullmatch(path.name)
    assert name, path
    seen = path.lstat()
    assert stat.S_ISREG(seen.st_mode), path
    assert seen.st_mode & 0o222 == 0, f"{path} can be written"
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    assert name[2] or sha256 == name[1], f"{path} has other bytes"
    meta = json.loads((node.cache / "meta" / f"{path.stem}.json").read_text())
    known = (meta["key"], meta["sha256"], meta["size_bytes"])
    assert known == (path.stem, sha256, len(data)), f"{path}: {meta}"


def check_no_leftovers(node: Node) -> None:
    """Nobody is at work, so nothing half made is there.

    A job's own directory is its epilog's to remove, with all that is in it.
    """
    unfinished = [*node.leftovers(), *node.directory.rglob("*.new")]
    unfinished = [path for path in unfinished if path.parents[1].name != "jobs"]
    assert not unfinished, unfinished


def check_no_jobs(node: Node) -> None:
    """Check, after all Epilogs, that no lease and no job's directory is left."""
    left = [*node.leases(), *node.state.glob("jobs/*")]
    assert not left, left


def check_staged(node: Node, job: int | str, data: bytes) -> Path:
    """Check that the job got an image with this content and holds a lease on it; return it."""
    task = node.task(job)
    assert task.code == 0, f"{task.printed}\n{node.log()}"
    assert task.image.read_bytes() == data, f"{task.image} has other bytes"
    assert (task.image.stem, str(job)) in node.leases(), node.leases()
    return task.image


def check_not_misled(node: Node, job: int | str, data: bytes) -> None:
    """Check that a job whose Prolog was killed got no image, or a correct one."""
    if "HPCIMG_IMAGE" in node.task(job).exports:
        check_staged(node, job, data)
