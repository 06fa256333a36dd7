"""Which images to evict, and in which order: decided without touching a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hpcimg.cache import lease
from hpcimg.cache.policy import Limits
from hpcimg.units import format_size

_JOBS_NAMED = 8
_FILES_EACH = 2  # inodes: an image and its record
_FILES_COMING = 4  # also a reference and an unfinished file


class Candidate(NamedTuple):
    """A candidate for eviction. `jobs` hold leases on it; it is private to `owner`.

    A pinned one is never evicted; an `unused` one, which no job has used yet, goes first.
    """

    key: str
    size_bytes: int
    last_used: float
    jobs: tuple[str, ...] = ()
    owner: int | None = None
    pinned: bool = False
    unused: bool = False


class Disk(NamedTuple):
    """The file system of the cache while `fetches` are under way.

    They have written `written_bytes` so far, and will write `reserved_bytes` more. `free_files`
    is the number of free inodes, None if the file system does not limit them.
    """

    free_bytes: int
    free_files: int | None = None
    written_bytes: int = 0
    reserved_bytes: int = 0
    fetches: int = 0


class Wanted(NamedTuple):
    """What has to be freed: a number of bytes, and a number of images, however small."""

    size_bytes: int
    files: int


NOTHING = Wanted(0, 0)


class Plan(NamedTuple):
    """What to free and in which order; what cannot be freed, and why."""

    wanted_bytes: int
    victims: tuple[Candidate, ...]
    in_use: tuple[Candidate, ...]
    too_young: tuple[Candidate, ...]
    pinned: tuple[Candidate, ...] = ()
    wanted_files: int = 0  # a number of images, however small

    @property
    def possible(self) -> bool:
        """Whether enough can be freed."""
        return self.done(self.victims)

    def done(self, gone: Sequence[Candidate]) -> bool:
        """Tell whether enough is free once these are gone."""
        return self.enough(sum(c.size_bytes for c in gone), len(gone))

    def enough(self, freed_bytes: int, freed_files: int) -> bool:
        """Tell whether freeing this much is enough."""
        return freed_bytes >= self.wanted_bytes and freed_files >= self.wanted_files

    def describe(self) -> str:
        """Describe what can be freed and what cannot."""
        eligible = sum(c.size_bytes for c in self.victims)
        parts = [f"{format_size(eligible)} eligible" if eligible else "0 eligible"]
        if self.in_use:
            jobs = sorted({job for c in self.in_use for job in c.jobs}, key=lease.by_number)
            size = format_size(sum(c.size_bytes for c in self.in_use))
            named = ", ".join(jobs[:_JOBS_NAMED]) + ", ..." * (len(jobs) > _JOBS_NAMED)
            parts.append(f"{size} in use by {len(jobs)} job{'s' * (len(jobs) != 1)} ({named})")
        if self.too_young:
            size = format_size(sum(c.size_bytes for c in self.too_young))
            parts.append(f"{size} used a moment ago")
        if self.pinned:
            parts.append(f"{format_size(sum(c.size_bytes for c in self.pinned))} pinned")
        return ", ".join(parts)


def plan_trim(
    candidates: Iterable[Candidate],
    *,
    free_bytes: int,
    limits: Limits,
    now: float,
    free_files: int | None = None,
) -> Plan:
    """Plan to go down to the low watermark, once above the high one or below `min_free`."""
    candidates = list(candidates)
    wanted = wanted_for_trim(
        sum(c.size_bytes for c in candidates),
        len(candidates),
        free_bytes=free_bytes,
        limits=limits,
        free_files=free_files,
    )
    return _plan(candidates, wanted, min_age_s=limits.min_age_s, now=now)


def wanted_for_trim(
    used_bytes: int, images: int, *, free_bytes: int, limits: Limits, free_files: int | None
) -> Wanted:
    """Return what `plan_trim` has to free in a cache of `used_bytes` in this many images."""
    wanted = used_bytes - limits.low if used_bytes > limits.high else 0
    files = _files_wanted(images, 0, free_files=free_files, limits=limits)
    return Wanted(max(wanted, limits.min_free - free_bytes, 0), files)


def plan_room(
    candidates: Iterable[Candidate],
    disk: Disk,
    *,
    incoming_bytes: int,
    limits: Limits,
    now: float,
) -> Plan:
    """Plan just enough room for an image that a job waits for.

    Age protects no image here: the job at hand is worth more than one that may come.
    """
    candidates = list(candidates)
    wanted = wanted_for_room(
        sum(c.size_bytes for c in candidates),
        len(candidates),
        disk,
        incoming_bytes=incoming_bytes,
        limits=limits,
    )
    return _plan(candidates, wanted, min_age_s=0.0, now=now)


def wanted_for_room(
    used_bytes: int, images: int, disk: Disk, *, incoming_bytes: int, limits: Limits
) -> Wanted:
    """Return what `plan_room` has to free in a cache of `used_bytes` in this many images."""
    coming = disk.reserved_bytes + incoming_bytes
    over = used_bytes + disk.written_bytes + coming - limits.max_size
    files = _files_wanted(images, disk.fetches, free_files=disk.free_files, limits=limits)
    return Wanted(max(over, limits.min_free + coming - disk.free_bytes, 0), files)


def _files_wanted(images: int, under_way: int, *, free_files: int | None, limits: Limits) -> int:
    """Return how many images have to go because of `max_images` or too few free inodes."""
    over = images + under_way - limits.max_images if limits.max_images else 0
    missing = 0
    if free_files is not None and limits.min_free_files:
        missing = limits.min_free_files + _FILES_COMING * under_way - free_files
    return max(over, -(-missing // _FILES_EACH), 0)


def plan_share(
    candidates: Iterable[Candidate],
    owner: int,
    *,
    coming_bytes: int,
    limits: Limits,
    now: float,
    under_way: int = 0,
) -> Plan:
    """Plan room in one user's share: of private images, only that user's own are evicted.

    `coming_bytes` is what the fetches for this user have written and will write.
    """
    own = [c for c in candidates if c.owner == owner]
    over = sum(c.size_bytes for c in own) + coming_bytes - limits.user_share
    # A small share in bytes must not mean only a few small images.
    most = max(limits.max_images * limits.user_share // limits.max_size, limits.max_images // 10, 1)
    files = max(len(own) + under_way - most, 0) if limits.max_images else 0
    return _plan(own, Wanted(max(over, 0), files), min_age_s=0.0, now=now)


def _plan(candidates: list[Candidate], wanted: Wanted, *, min_age_s: float, now: float) -> Plan:
    in_use = tuple(c for c in candidates if c.jobs)
    pinned = tuple(c for c in candidates if c.pinned and not c.jobs)
    idle = [c for c in candidates if not c.jobs and not c.pinned]
    too_young = tuple(c for c in idle if now - c.last_used < min_age_s)
    old = sorted(set(idle) - set(too_young), key=lambda c: (not c.unused, c.last_used, c.key))
    return Plan(wanted.size_bytes, tuple(old), in_use, too_young, pinned, wanted.files)
