"""Eviction: removing images as planned by hpcimg.cache.plan, unless a job uses them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hpcimg.cache import events, index, inflight, lease, pins, store
from hpcimg.cache.paths import Layout, owned
from hpcimg.cache.plan import (
    NOTHING,
    Candidate,
    Disk,
    Plan,
    plan_room,
    plan_share,
    plan_trim,
    wanted_for_room,
    wanted_for_trim,
)
from hpcimg.cache.policy import Limits
from hpcimg.errors import DeadlinePassed, NoRoom, TooLarge, explained
from hpcimg.locks import held
from hpcimg.units import format_size

_TURN_S = 5.0  # longer evictions let others make their room in between


class Report(NamedTuple):
    """The result of an eviction."""

    plan: Plan
    evicted: tuple[Candidate, ...]

    @property
    def freed_bytes(self) -> int:
        return sum(c.size_bytes for c in self.evicted)


def candidates(layout: Layout, now: float) -> list[Candidate]:
    """Return all finished images, and blobs, as candidates for eviction.

    A last use in the future, from a wrong clock, counts as now: otherwise it would protect its
    image until that time. Images that are never handed out again go first.
    """
    found = []
    pinned = pins.keys(layout)
    for entry, used in index.entries(layout):
        if not store.whole(layout, entry):
            continue
        if used > now:
            store.mark_used(layout, entry.key)
            used = now
        used = 0.0 if entry.is_misnamed else used
        jobs = tuple(lease.holders(layout, entry.key))
        keep = entry.key in pinned
        unused = entry.unused(used)
        found.append(Candidate(entry.key, entry.size_bytes, used, jobs, entry.owner, keep, unused))
    return found


@explained()
def trim(
    layout: Layout, limits: Limits, *, time_s: float, dry_run: bool = False, in_full: bool = True
) -> Report:
    """Bring the cache down to the low watermark if it is above the high one.

    Without `in_full` the plan is empty if the sizes alone say that nothing has to go. Stops after
    about `time_s` seconds, even if too little is freed. Takes the lock "room", with pauses for
    others, so that two evictions do not free the same bytes twice. Raises DeadlinePassed if it is
    held all the time, NoRoom and CacheUnusable for errors of the disk.
    """
    until = time.monotonic() + time_s
    evicted: tuple[Candidate, ...] = ()
    first: Plan | None = None
    while True:
        try:
            with held(layout.lock("room"), deadline=until):
                now = time.time()
                free, files = free_on_disk(layout), free_files(layout)
                if first is None and not in_full:
                    wanted = wanted_for_trim(
                        *index.held(layout), free_bytes=free, limits=limits, free_files=files
                    )
                    if wanted == NOTHING:
                        return Report(Plan(0, (), (), ()), ())
                plan = plan_trim(
                    candidates(layout, now),
                    free_bytes=free,
                    limits=limits if first is None else limits._replace(high=limits.low),
                    now=now,
                    free_files=files,
                )
                first = first or plan
                if dry_run:
                    return Report(plan, _until_enough(plan, lambda _: True))
                turn = min(until, time.monotonic() + _TURN_S)
                gone = _execute(layout, plan, until=turn, reason="limit")
                evicted += gone
        except DeadlinePassed:
            if first is None:
                raise
            return Report(first, evicted)
        if plan.done(gone) or time.monotonic() < turn or turn == until:
            return Report(first, evicted)


def make_room(
    layout: Layout,
    limits: Limits,
    incoming_bytes: int,
    *,
    what: str,
    deadline: float,
    owner: int | None = None,
) -> bool:
    """Free what an image needs for `incoming_bytes` more than is already written.

    If it is private to `owner`, first in that user's share. Hold the lock "room" until the image is
    announced in `inflight`, so that two fetches do not count on the same bytes. Returns False if it
    takes long: then release the lock for others, and call it again. Raises TooLarge if the image
    can never fit, NoRoom if it does not fit now; then nothing is evicted.
    """
    for plan, reason, lacking in _plans(layout, limits, incoming_bytes, what=what, owner=owner):
        if not plan.possible:
            raise lacking
        until = min(deadline, time.monotonic() + _TURN_S)
        if not plan.done(_execute(layout, plan, until=until, reason=reason)):
            if until < time.monotonic() < deadline:
                return False
            raise lacking
    return True


def check_room(
    layout: Layout, limits: Limits, size_bytes: int, *, what: str, owner: int | None
) -> None:
    """Check whether an image would fit if everything not in use were evicted; evict nothing.

    Raises TooLarge, NoRoom.
    """
    for plan, _, lacking in _plans(layout, limits, size_bytes, what=what, owner=owner):
        if not plan.possible:
            raise lacking


def _plans(
    layout: Layout, limits: Limits, incoming_bytes: int, *, what: str, owner: int | None
) -> Iterator[tuple[Plan, str, NoRoom]]:
    """Yield what has to be freed, first in a user's share, each with the error if it cannot be.

    In between is the reason for the events, "share" or "room". Raises TooLarge.
    """
    check_fits(limits, incoming_bytes, what=what, owner=owner)
    if owner is not None and limits.user_share:
        yield _share_plan(layout, limits, incoming_bytes, owner, what=what)
    now = time.time()
    works = inflight.under_way(layout)
    disk = Disk(
        free_on_disk(layout),
        free_files(layout),
        written_bytes=sum(work["written"] for work in works),
        reserved_bytes=sum(work["coming"] for work in works),
        fetches=len(works),
    )
    wanted = wanted_for_room(
        *index.held(layout), disk, incoming_bytes=incoming_bytes, limits=limits
    )
    if wanted == NOTHING:  # the usual case, in which no record has to be read
        return
    plan = plan_room(
        candidates(layout, now), disk, incoming_bytes=incoming_bytes, limits=limits, now=now
    )
    needs = f"it needs {format_size(incoming_bytes)}, " if incoming_bytes else ""
    sizes = [format_size(plan.wanted_bytes)] if plan.wanted_bytes or not plan.wanted_files else []
    sizes += [f"{plan.wanted_files} images (by count)"] if plan.wanted_files else []
    why = f"{needs}{' and '.join(sizes)} would have to be freed: {plan.describe()}"
    yield plan, "room", NoRoom(f"there is no room on this node for {what}", why=why)


def _share_plan(
    layout: Layout, limits: Limits, incoming_bytes: int, owner: int, *, what: str
) -> tuple[Plan, str, NoRoom]:
    now = time.time()
    own = [work for work in inflight.under_way(layout) if work["id"].startswith(owned("", owner))]
    plan = plan_share(
        candidates(layout, now),
        owner,
        coming_bytes=incoming_bytes + sum(work["written"] + work["coming"] for work in own),
        limits=limits,
        now=now,
        under_way=len(own),
    )
    return (
        plan,
        "share",
        NoRoom(
            f"there is no room for {what} in your share of this node's cache",
            why=f"this site lets each user keep {format_size(limits.user_share)} of private "
            f"images on a node, and of yours {plan.describe()}",
            do="Wait until your other jobs on this node have ended, or use shared images.",
        ),
    )


def check_fits(limits: Limits, size_bytes: int, *, what: str, owner: int | None = None) -> None:
    """Raise TooLarge for an image that would not fit even into an empty cache."""
    if owner is not None and 0 < limits.user_share < size_bytes:
        raise TooLarge(
            f"{what} is too large for your share of this node's cache",
            why=f"it has {format_size(size_bytes)}, and this site lets each user keep "
            f"{format_size(limits.user_share)} of private images on a node",
        )
    if size_bytes > limits.max_size:
        raise TooLarge(
            f"{what} is too large for this cache",
            why=f"it has {format_size(size_bytes)}, the cache holds {format_size(limits.max_size)}",
        )


def evict(
    layout: Layout, key: str, *, reason: str = "limit", may_go: Callable[[], bool] | None = None
) -> bool:
    """Remove one image unless a job uses it, it is pinned, or a process is working on it.

    `reason` is a word for the event: limit, room, share, rm or damaged. `may_go` replaces the check
    for a pin and a complete file, and is called while no other process works on the image.
    """
    load = store.load_record if may_go else store.load_entry
    try:
        with held(layout.lock(key), deadline=time.monotonic()):
            if not (may_go() if may_go else pins.load(layout, key) is None):
                return False
            if not lease.close_to_hits(layout, key):
                return False
            entry = load(layout, key)
            if entry is None:
                return False
            store.forget(layout, entry)
    except DeadlinePassed:
        return False
    events.record(layout.events, "evict", key=key, bytes=entry.size_bytes, reason=reason)
    return True


def _execute(layout: Layout, plan: Plan, *, until: float, reason: str) -> tuple[Candidate, ...]:
    """Evict as planned until it is enough, or until a time.monotonic() value."""

    def gone(candidate: Candidate) -> bool:
        return evict(layout, candidate.key, reason=reason)

    return _until_enough(plan, gone, until=until)


def _until_enough(
    plan: Plan, gone: Callable[[Candidate], bool], *, until: float = float("inf")
) -> tuple[Candidate, ...]:
    freed: list[Candidate] = []
    freed_bytes = 0
    for candidate in plan.victims:
        if plan.enough(freed_bytes, len(freed)) or time.monotonic() > until:
            break
        if gone(candidate):
            freed.append(candidate)
            freed_bytes += candidate.size_bytes
    return tuple(freed)


def free_on_disk(layout: Layout) -> int:
    """Return the free bytes on the cache's file system."""
    seen = os.statvfs(layout.cache)
    return seen.f_bavail * seen.f_frsize


def free_files(layout: Layout) -> int | None:
    """Return the free inodes there, None if the file system does not limit them."""
    seen = os.statvfs(layout.cache)
    return seen.f_favail if seen.f_files else None
