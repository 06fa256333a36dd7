"""Directories that grow by what users ask for, kept to a number of files.

Each reference that was ever tried leaves a lock file, and one that worked a record or
two; a user can think of any number of them, right or wrong. What goes is what is oldest;
it is found out again where it is needed. What is private to one user is counted for
itself, so that nobody's records go for another's.
"""

from __future__ import annotations

import collections
import contextlib
import os

from hpcimg import locks
from hpcimg.cache.paths import Layout

SHARED = 4096
PRIVATE = 1024  # of each user
LOCKS = 1024
_KEPT = 0.75  # of the number, so that not every job has to look for the oldest


def keep(layout: Layout) -> None:
    """Remove what is too many. What cannot be removed stays: this fails no job."""
    for directory in (layout.refs, layout.failures):
        _keep_newest(directory)
    for name in _listdir(layout.hot):
        _keep_newest(f"{layout.hot}/{name}", most=SHARED if name == "all" else PRIVATE)
    names = _listdir(layout.locks)
    if len(names) > LOCKS:
        for name in names:
            locks.remove_free(f"{layout.locks}/{name}")
    for name in _listdir(layout.leaders):  # who ends well removes its own
        locks.remove_free(f"{layout.leaders}/{name}")


def _keep_newest(directory: str, *, most: int = 0) -> None:
    """Keep this many files, or so many of what is shared and of what is private to each user."""
    by_owner = collections.defaultdict(list)
    for name in _listdir(directory):
        owner = name.partition("-")[0] if name.startswith("u") and not most else ""
        by_owner[owner].append(f"{directory}/{name}")
    for owner, paths in by_owner.items():
        limit = most or (PRIVATE if owner else SHARED)
        if len(paths) > limit:
            paths.sort(key=_modified)
            for path in paths[: len(paths) - int(limit * _KEPT)]:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _modified(path: str) -> float:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
