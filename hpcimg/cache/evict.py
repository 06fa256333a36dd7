"""Eviction: images go as hpcimg.cache.plan decides, unless a job uses them."""

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

_TURN_S = 5.0  # who evicts for longer lets others look for their room in between


class Report(NamedTuple):
    """What an eviction did."""

    plan: Plan
    evicted: tuple[Candidate, ...]

    @property
    def freed_bytes(self) -> int:
        return sum(c.size_bytes for c in self.evicted)


def candidates(layout: Layout, now: float) -> list[Candidate]:
    """Return all finished images, and blobs, as eviction sees them.

    A last use in the future, from a clock that was wrong, becomes one now: it
    would otherwise keep its image until that time comes. What is never handed out
    again goes before all others.
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
    """Bring the cache down to the low watermark where it is above the high one.

    Without `in_full` the plan is empty where the sizes alone say that nothing has to go.
    Ends after about `time_s` seconds, with less freed. Takes the lock "room", now and then
    for others to have it, so that two of these do not free the same bytes twice. Raises
    DeadlinePassed where that is held all the time, NoRoom and CacheUnusable for what the
    disk does.
    """
    until = time.monotonic() + time_s
    evicted: tuple[Candidate, ...] = ()
    first: Plan | None = None
    while True:
        try:
            with held(layout.lock("room"), deadline=until, waiting=lambda _: None):
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
    """Free what an image of `incoming_bytes`, beyond what is written of it, needs.

    Where it is private to `owner`, in that user's share first. Hold the lock
    "room" until the image is announced in `inflight`, so that two fetches do not
    count on the same bytes. Returns False where that takes long: then give the lock
    to others, and come again. Raises TooLarge where the image could never fit,
    NoRoom where it does not fit now; nothing is evicted for what would not fit even so.
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
    """Look whether an image has room now if all goes that nobody uses; evict nothing.

    Raises TooLarge, NoRoom.
    """
    for plan, _, lacking in _plans(layout, limits, size_bytes, what=what, owner=owner):
        if not plan.possible:
            raise lacking


def _plans(
    layout: Layout, limits: Limits, incoming_bytes: int, *, what: str, owner: int | None
) -> Iterator[tuple[Plan, str, NoRoom]]:
    """Yield what has to be freed, in a user's share first, and what to say if it cannot be.

    Between them is the reason, "share" or "room", for the events. Raises TooLarge.
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
    if wanted == NOTHING:  # most of the time, and then no record has to be read
        return
    plan = plan_room(
        candidates(layout, now), disk, incoming_bytes=incoming_bytes, limits=limits, now=now
    )
    needs = f"it needs {format_size(incoming_bytes)}, " if incoming_bytes else ""
    sizes = [format_size(plan.wanted_bytes)] if plan.wanted_bytes or not plan.wanted_files else []
    sizes += [f"{plan.wanted_files} images, for their number,"] if plan.wanted_files else []
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
            do="Wait until your other jobs on this node have ended, or use images that all share.",
        ),
    )


def check_fits(limits: Limits, size_bytes: int, *, what: str, owner: int | None = None) -> None:
    """Raise TooLarge for an image that has no room even in an empty cache."""
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
    """Remove one image unless a job uses it, it is pinned, or somebody is at work on it.

    `reason` is a word for the event: limit, room, share, rm or damaged. `may_go`
    is asked in place of whether it is pinned and whole, while nobody else is at it.
    """
    load = store.load_record if may_go else store.load_entry
    try:
        with held(layout.lock(key), deadline=time.monotonic(), waiting=lambda _: None):
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
    """Evict what is planned until it is enough, or until a time.monotonic() value."""

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
    """Return the bytes that are free on the cache's file system."""
    seen = os.statvfs(layout.cache)
    return seen.f_bavail * seen.f_frsize


def free_files(layout: Layout) -> int | None:
    """Return the inodes that are free there, None where the file system does not count them."""
    seen = os.statvfs(layout.cache)
    return seen.f_favail if seen.f_files else None
