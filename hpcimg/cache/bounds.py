"""Limits on the number of files in directories that grow with users' requests.

Each reference that was ever tried leaves a lock file, and one that worked a record or two; a user
can make up any number of them, valid or not. The oldest are removed; they are recreated when
needed. Private ones are counted per user, so that no user displaces another's records.
"""

from __future__ import annotations

import collections
import contextlib
import os

from hpcimg import locks
from hpcimg.cache.paths import Layout

SHARED = 4096
PRIVATE = 1024  # per user
LOCKS = 1024
_KEPT = 0.75  # of the number, so that not every job has to search for the oldest


def keep(layout: Layout) -> None:
    """Remove the surplus. Files that cannot be removed stay: this never fails a job."""
    for directory in (layout.refs, layout.failures):
        _keep_newest(directory)
    for name in _listdir(layout.hot):
        _keep_newest(f"{layout.hot}/{name}", most=SHARED if name == "all" else PRIVATE)
    names = _listdir(layout.locks)
    if len(names) > LOCKS:
        for name in names:
            locks.remove_free(f"{layout.locks}/{name}")
    for name in _listdir(layout.leaders):  # left by processes that were killed
        locks.remove_free(f"{layout.leaders}/{name}")


def _keep_newest(directory: str, *, most: int = 0) -> None:
    """Keep this many files, or this many shared and this many private ones per user."""
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
