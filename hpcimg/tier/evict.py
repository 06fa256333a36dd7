"""Evict images from the site tier by age and by size: one node at a time, and none being read.

The last use of an image is the modification time of its file. All times are the file system's, so
that a node with a wrong clock does no harm.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hpcimg import atomic
from hpcimg.config.values import Size
from hpcimg.locks import Lease
from hpcimg.tier import records
from hpcimg.tier.places import Places

_LOW = 0.9  # low watermark, as a part of the size limit
_YOUNG_S = 600.0  # kept, since a node that mounts the tier read-only cannot mark what it reads
_MARK_S = 86400.0  # an older mark was left by a node that has crashed
_JOB_S = 7 * 86400.0
_FAILURE_S = 3600.0
_FILES_MAX = 16384  # per directory, since users' requests create files
_EVERY_S = 600.0
_LEASE = "gc"


class Image(NamedTuple):
    """An image file of the tier; `used` is its time of last use, by the file system's clock."""

    name: str
    size_bytes: int
    used: float


class Report(NamedTuple):
    """What was removed, or would be. `others` counts small files. `busy`: another node does it."""

    images: tuple[Image, ...] = ()
    others: int = 0
    held_bytes: int = 0
    busy: bool = False

    @property
    def freed_bytes(self) -> int:
        return sum(image.size_bytes for image in self.images)


def plan(
    images: Iterable[Image], *, limit: int, max_age_s: float, now: float, read: frozenset[str]
) -> tuple[Image, ...]:
    """Return the images to evict: those too old, then the least recently used, down to the limit.

    An image whose digest is in `read`, or that was used a short while ago, is kept.
    """
    images = sorted(images, key=lambda image: (image.used, image.name))
    held = sum(image.size_bytes for image in images)
    enough = held - int(limit * _LOW) if held > limit else 0
    going: list[Image] = []
    for image in images:
        age_s = now - image.used
        if age_s < _YOUNG_S or image.name.partition(".")[0] in read:
            continue
        if age_s > max_age_s or sum(gone.size_bytes for gone in going) < enough:
            going.append(image)
    return tuple(going)


def due(at: Places) -> bool:
    """Tell whether the last eviction was long ago, and record that one begins. Raises OSError."""
    path = f"{at.base}/trimmed"
    with contextlib.suppress(FileNotFoundError):
        if 0 <= _now(at) - os.lstat(path).st_mtime < _EVERY_S:
            return False
    atomic.write_file(path, "", temp=records.temp_path(at), mode=0o600)
    return True


def trim(
    at: Places, *, max_size: Size, max_age_s: float, lease_s: float, dry_run: bool = False
) -> Report:
    """Evict, as the owner of the tier. Raises OSError, HpcimgError, RuntimeError (of the lease)."""
    lease = Lease(f"{at.leases}/{_LEASE}", lease_s)
    if not lease.take():
        return Report(busy=True)
    try:
        return _trim(at, max_size, max_age_s, dry_run=dry_run)
    finally:
        lease.release()


def _trim(at: Places, max_size: Size, max_age_s: float, *, dry_run: bool) -> Report:
    now = _now(at)
    seen = os.statvfs(at.images)
    images = [
        Image(os.path.basename(path), each.st_size, each.st_mtime)
        for path, each in _files(at.images)
    ]
    going = plan(
        images,
        limit=max_size.of(seen.f_blocks * seen.f_frsize),
        max_age_s=max_age_s,
        now=now,
        read=_read(at, now),
    )
    held = sum(image.size_bytes for image in images)
    if dry_run:
        return Report(going, 0, held)
    gone = tuple(image for image in going if _remove(at, image, now))
    return Report(gone, _sweep(at, now, max_age_s), held - sum(i.size_bytes for i in gone))


def _remove(at: Places, image: Image, now: float) -> bool:
    """Remove an image unless a node has begun to read it; tell whether it is gone."""
    path, aside = f"{at.images}/{image.name}", records.temp_path(at)
    try:
        os.rename(path, aside)
    except FileNotFoundError:  # another node removed it as damaged
        return False
    if image.name.partition(".")[0] in _read(at, now):
        os.rename(aside, path)
        return False
    os.unlink(aside)
    return True


def _sweep(at: Places, now: float, max_age_s: float) -> int:
    """Remove outdated records and leftovers of crashed nodes; return how many."""
    swept = 0
    ages = {
        at.tmp: _MARK_S, at.readers: _MARK_S, at.leases: _MARK_S, at.jobs: _JOB_S,
        at.failures: _FAILURE_S, at.refs: max_age_s,
    }  # fmt: skip
    for directory, most_s in ages.items():
        files = sorted(_files(directory), key=lambda file: file[1].st_mtime, reverse=True)
        for number, (path, seen) in enumerate(files):
            age_s = now - seen.st_mtime
            useless = age_s > most_s or number >= _FILES_MAX
            if directory == at.refs and age_s > _YOUNG_S:
                record = records.load(path)
                useless |= record is None or not os.path.lexists(record.path(at))
            if useless:
                swept += atomic.remove(path)
    return swept


def _read(at: Places, now: float) -> frozenset[str]:
    """Return the digests of the images being copied, which begin the names of the marks."""
    marks = _files(at.readers)
    return frozenset(
        os.path.basename(path).partition("~")[0]
        for path, seen in marks
        if now - seen.st_mtime < _MARK_S
    )


def _now(at: Places) -> float:
    """Return the time by the file system's clock."""
    path = records.temp_path(at)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
        os.unlink(path)


def _files(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            yield f"{directory}/{name}", os.lstat(f"{directory}/{name}")
