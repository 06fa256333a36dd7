"""The site tier's directories, and the check that nobody else can write to them.

Each format version has its own directory, and so has each processor architecture, because a tag
stands for another image on each. Anybody who can write here chooses what all nodes run. So the
owner and the mode of a directory are checked before it is used, and those of a file once it is
open.
"""

from __future__ import annotations

import os
import stat

VERSION = 1
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


class Trouble(Exception):
    """The site tier cannot be used now. The text says why; no job fails because of it."""


class Places:
    """The directories below [site] path."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.base = f"{path}/v{VERSION}-{os.uname().machine}"
        self.images = f"{self.base}/images"
        self.refs = f"{self.base}/refs"
        self.leases = f"{self.base}/leases"
        self.failures = f"{self.base}/failures"
        self.jobs = f"{self.base}/jobs"
        self.readers = f"{self.base}/readers"
        self.tmp = f"{self.base}/tmp"

    def all(self) -> tuple[str, ...]:
        return (
            self.images, self.refs, self.leases, self.failures, self.jobs, self.readers, self.tmp
        )  # fmt: skip

    def image(self, sha256: str, extension: str) -> str:
        # By its digest: two nodes may convert the same layers to different files.
        return f"{self.images}/{sha256}.{extension}"


def prepare(places: Places) -> None:
    """Create missing directories, as the current user; check all. Raises Trouble, OSError."""
    check_way(places.path)
    for directory in (places.base, *places.all()):
        try:
            seen = os.lstat(directory)
        except FileNotFoundError:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            seen = os.lstat(directory)
        _check(seen, directory)


def check_way(path: str) -> None:
    """Raise Trouble if anybody but root and us could put another directory at this path."""
    _check(os.lstat(path), path)
    # The path as written, and with symbolic links above it resolved.
    for above in (path, os.path.realpath(path)):
        while above != "/":
            above = os.path.dirname(above)
            seen = os.stat(above)
            sticky = seen.st_mode & stat.S_ISVTX
            if not _owned(seen) or (seen.st_mode & _WRITABLE and not sticky):
                raise _unsafe(seen, above)


def open_file(path: str) -> tuple[int, os.stat_result]:
    """Open a file of the tier for reading. Raises OSError, Trouble if others could write to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    seen = os.fstat(descriptor)
    if not is_ours(seen):
        os.close(descriptor)
        raise _unsafe(seen, path)
    return descriptor, seen


def is_ours(seen: os.stat_result) -> bool:
    """Tell whether this is a file that only root or we can have written."""
    return stat.S_ISREG(seen.st_mode) and _owned(seen) and not seen.st_mode & _WRITABLE


def _check(seen: os.stat_result, path: str) -> None:
    if not stat.S_ISDIR(seen.st_mode):
        raise Trouble(f"{path} is not a directory")
    if not _owned(seen) or seen.st_mode & _WRITABLE:
        raise _unsafe(seen, path)


def _owned(seen: os.stat_result) -> bool:
    return seen.st_uid in (0, os.geteuid())


def _unsafe(seen: os.stat_result, path: str) -> Trouble:
    return Trouble(
        f"{path} is not safe: its owner is uid {seen.st_uid}, its mode"
        f" {stat.S_IMODE(seen.st_mode):04o}; it must belong to root or to [site] account, and"
        " not be writable by anyone else"
    )
