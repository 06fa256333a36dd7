"""Where everything of the site tier is, and which of it is to be trusted.

Releases that write another form have another directory, and so have processors: a tag stands
for another image on each. Whoever could write here would choose what all nodes run, so the
owner and the mode of a directory are looked at before it is used, and those of each file
once it is open.
"""

from __future__ import annotations

import os
import stat

VERSION = 1
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


class Trouble(Exception):
    """The site tier cannot be used now. The text says why; nobody's job fails for it."""


class Places:
    """The directories below the one that the site named."""

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
        # By what is in it: two nodes may have made two files of the same layers.
        return f"{self.images}/{sha256}.{extension}"


def prepare(places: Places) -> None:
    """Make the directories that are missing, as who we are; check all. Raises Trouble, OSError."""
    check_way(places.path)
    for directory in (places.base, *places.all()):
        try:
            seen = os.lstat(directory)
        except FileNotFoundError:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            seen = os.lstat(directory)
        _check(seen, directory)


def check_way(path: str) -> None:
    """Raise Trouble where others than root and we could put another directory at this path."""
    _check(os.lstat(path), path)
    # As it is written, and as links above it lead.
    for above in (path, os.path.realpath(path)):
        while above != "/":
            above = os.path.dirname(above)
            seen = os.stat(above)
            sticky = seen.st_mode & stat.S_ISVTX
            if not _owned(seen) or (seen.st_mode & _WRITABLE and not sticky):
                raise _unsafe(seen, above)


def open_file(path: str) -> tuple[int, os.stat_result]:
    """Open a file of the tier to read it. Raises OSError, and Trouble where it is not ours."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    seen = os.fstat(descriptor)
    if not is_ours(seen):
        os.close(descriptor)
        raise _unsafe(seen, path)
    return descriptor, seen


def is_ours(seen: os.stat_result) -> bool:
    """Tell whether this is a file that nobody but root and we can have written."""
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
