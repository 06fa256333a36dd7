"""Looking at every file of the cache again: is it still what its digest says?

A file is read at a limited rate. One that no job uses comes from the disk, not
from the page cache, and does not stay there. What a job uses is told and left alone.
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
Progress = Callable[[int], None]  # hears of bytes that were read


class Damage(NamedTuple):
    """A file that is not what was stored. `jobs` use it; `removed` says whether it went."""

    key: str
    path: str
    uris: tuple[str, ...]
    why: str
    jobs: tuple[str, ...]
    removed: bool = False


class Result(NamedTuple):
    """What came of a look: how many files, their bytes, and what is damaged."""

    files: int
    size_bytes: int
    damaged: tuple[Damage, ...]

    @property
    def left(self) -> int:
        """How many damaged files are still there."""
        return sum(not damage.removed for damage in self.damaged)


class Last(NamedTuple):
    """The last look at all files, as a Unix time, and what it left damaged."""

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

    `rate_bytes` is the most that is read in a second, 0 for no limit. With
    `repair`, what is damaged goes, pinned or not, unless a job uses it. `found`
    hears of each damaged file at once. A file that was evicted meanwhile is none.
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
    why: str  # what is wrong, "" for nothing
    read: int
    identity: tuple[int, ...]


def _look(
    layout: Layout, entry: Entry, pace: _Pace, progress: Progress, *, in_use: bool
) -> _Looked | None:
    """Read one file, None where there is none (any more)."""
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
    """Return how many bytes the file has, and their sha256."""
    digest, done = hashlib.sha256(), 0
    if not in_use:  # what is in memory may be right where the disk is not
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
    """Keeps reading below a rate, over all files together."""

    def __init__(self, rate_bytes: float) -> None:
        self._rate = rate_bytes
        self._due = time.monotonic()

    def wait(self, size_bytes: int) -> None:
        if not self._rate:
            return
        now = time.monotonic()
        # What was missed a while ago is not made up for in a burst.
        self._due = max(self._due, now - 1.0) + size_bytes / self._rate
        if self._due > now:
            time.sleep(self._due - now)


def _remove(layout: Layout, key: str, path: str, identity: tuple[int, ...]) -> bool:
    """Remove a damaged file unless a job uses it, or it is another one by now."""

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
    """Write down that all files were looked at now; beside the images, to survive a reboot."""
    last = Last(time.time(), result.files, len(result.damaged), result.left)
    text = json.dumps({"version": _VERSION, **last._asdict()}) + "\n"
    atomic.write_file(layout.verified, text, temp=processes.temp_path(layout.tmp, "verified"))


def last(layout: Layout) -> Last | None:
    """Return what `remember` wrote down last."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(layout.verified, encoding="utf-8") as file:
            fields = json.load(file)
        numbers = (int(fields[name]) for name in ("files", "damaged", "left"))
        return Last(float(fields["time"]), *numbers)
    return None
