"""Verifying every file of the cache against its digest.

Files are read at a limited rate. A file that no job uses is read from the disk, not from the page
cache, and is not left there. A file in use is reported and left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hpcimg import atomic, processes
from hpcimg.cache import evict, lease, store
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry
from hpcimg.errors import explained

_VERSION = 1
_CHUNK = 1 << 20
Progress = Callable[[int], None]  # called with the number of bytes that were read


class Damage(NamedTuple):
    """A file that differs from what was stored. `jobs` use it; `removed` says if it is gone."""

    key: str
    path: str
    uris: tuple[str, ...]
    why: str
    jobs: tuple[str, ...]
    removed: bool = False


class Result(NamedTuple):
    """The result of a verification: number of files, their bytes, and the damaged ones."""

    files: int
    size_bytes: int
    damaged: tuple[Damage, ...]

    @property
    def left(self) -> int:
        """The number of damaged files that are still there."""
        return sum(not damage.removed for damage in self.damaged)


class Last(NamedTuple):
    """The last verification of all files, as a Unix time, and its result."""

    time: float
    files: int
    damaged: int
    left: int


def scrub(
    layout: Layout,
    entries: Iterable[Entry],
    *,
    rate_bytes: float,
    repair: bool,
    progress: Progress,
    found: Callable[[Damage], None],
) -> Result:
    """Read the files of these entries and compare them with their digests.

    `rate_bytes` is the maximum read per second, 0 for no limit. With `repair`, damaged files are
    removed, pinned or not, unless a job uses them. `found` is called for each damaged file at once.
    A file evicted in the meantime does not count.
    """
    pace = _Pace(rate_bytes)
    files, size_bytes = 0, 0
    damaged = []
    for entry in entries:
        jobs = tuple(sorted(lease.holders(layout, entry.key), key=lease.by_number))
        looked = _look(layout, entry, pace, progress, in_use=bool(jobs))
        if looked is None:
            continue
        files += 1
        size_bytes += looked.read
        if looked.why:
            path = store.path_of(layout, entry)
            removed = repair and _remove(layout, entry.key, path, looked.identity)
            if not removed:
                jobs = tuple(sorted(lease.holders(layout, entry.key), key=lease.by_number))
            damaged.append(Damage(entry.key, path, entry.uris, looked.why, jobs, removed))
            found(damaged[-1])
    return Result(files, size_bytes, tuple(damaged))


class _Looked(NamedTuple):
    why: str  # what is wrong, "" if nothing is
    read: int
    identity: tuple[int, ...]


def _look(
    layout: Layout, entry: Entry, pace: _Pace, progress: Progress, *, in_use: bool
) -> _Looked | None:
    """Read one file; None if it does not exist (any more)."""
    path = store.path_of(layout, entry)
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _Looked(error.strerror or str(error), 0, ())
    identity = _identity(seen)
    if not stat.S_ISREG(seen.st_mode):
        return _Looked("it is not a file", 0, identity)
    if store.is_foreign(seen):
        return _Looked(f"it belongs to uid {seen.st_uid}", 0, identity)
    if seen.st_size != entry.size_bytes:
        why = f"it has {seen.st_size} bytes, {entry.size_bytes} were stored"
        return _Looked(why, 0, identity)
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _Looked(error.strerror or str(error), 0, identity)
    try:
        read, digest = _digest(file, pace, progress, in_use=in_use)
    except OSError as error:
        return _Looked(f"it cannot be read: {error.strerror}", 0, identity)
    finally:
        os.close(file)
    why = "" if digest == entry.sha256 else f"its sha256 is {digest}, {entry.sha256} was stored"
    return _Looked(why, read, identity)


def _digest(file: int, pace: _Pace, progress: Progress, *, in_use: bool) -> tuple[int, str]:
    """Return the file's size and sha256."""
    digest, done = hashlib.sha256(), 0
    if not in_use:  # the copy in memory may be right while the disk is wrong
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    while chunk := os.read(file, _CHUNK):
        digest.update(chunk)
        if not in_use:
            os.posix_fadvise(file, done, len(chunk), os.POSIX_FADV_DONTNEED)
        done += len(chunk)
        progress(len(chunk))
        pace.wait(len(chunk))
    return done, digest.hexdigest()


class _Pace:
    """Keeps reading below a rate, across all files."""

    def __init__(self, rate_bytes: float) -> None:
        self._rate = rate_bytes
        self._due = time.monotonic()

    def wait(self, size_bytes: int) -> None:
        if not self._rate:
            return
        now = time.monotonic()
        # Do not make up for earlier delays in a burst.
        self._due = max(self._due, now - 1.0) + size_bytes / self._rate
        if self._due > now:
            time.sleep(self._due - now)


def _remove(layout: Layout, key: str, path: str, identity: tuple[int, ...]) -> bool:
    """Remove a damaged file unless a job uses it, or it has been replaced since."""

    def the_same() -> bool:
        try:
            return _identity(os.lstat(path)) == identity
        except OSError:
            return not identity

    return evict.evict(layout, key, reason="damaged", may_go=the_same)


def _identity(seen: os.stat_result) -> tuple[int, ...]:
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size


@explained()
def remember(layout: Layout, result: Result) -> None:
    """Record that all files were verified now; next to the images, to survive a reboot."""
    last = Last(time.time(), result.files, len(result.damaged), result.left)
    text = json.dumps({"version": _VERSION, **last._asdict()}) + "\n"
    atomic.write_file(layout.verified, text, temp=processes.temp_path(layout.tmp, "verified"))


def last(layout: Layout) -> Last | None:
    """Return the result that `remember` recorded last."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(layout.verified, encoding="utf-8") as file:
            fields = json.load(file)
        numbers = (int(fields[name]) for name in ("files", "damaged", "left"))
        return Last(float(fields["time"]), *numbers)
    return None
