"""The type of the file system of a path, and whether it is local to this node."""

from __future__ import annotations

import contextlib
import os

# There, locks, leases and renames would involve other nodes, and each of them would evict.
_NETWORK = frozenset(
    (
        "9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs",
        "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs",
        "fuse.beegfs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "fuse.juicefs",
    )
)  # fmt: skip


def kind(path: str) -> str:
    """Return the type of the file system that a path is or would be on, "" if unknown."""
    path = os.path.realpath(path)
    best, found = "", ""
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            _, point, type_name, *_ = line.split(" ")
            point = _unescaped(point)
            # The last mount at a mount point hides those before it.
            if f"{path}/".startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, found = point, type_name
    return found


def network(path: str) -> str:
    """Return the type of the network file system that a path is on, "" if it is local."""
    found = kind(path)
    return found if found in _NETWORK else ""


def _unescaped(point: str) -> str:
    """Decode the octal escapes of proc_pid_mounts(5) in a mount point."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        point = point.replace(code, character)
    return point
