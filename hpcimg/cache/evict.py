"""Eviction: images go as hpcimg.cache.plan decides, unless a job uses them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hpcimg.cache import events, inflight, lease, store
from hpcimg.cache.paths import Layout, owned
from hpcimg.cache.plan import Candidate, Plan, plan_room, plan_share, plan_trim
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
    for entry in store.entries(layout):
        used = store.last_used(layout, entry.key)
        if used > now:
            store.mark_used(layout, entry.key)
            used = now
        used = 0.0 if entry.is_misnamed else used
        jobs = tuple(lease.holders(layout, entry.key))
        found.append(Candidate(entry.key, entry.size_bytes, used, jobs, entry.owner))
    return found


@explained()
def trim(layout: Layout, limits: Limits, *, time_s: float, dry_run: bool = False) -> Report:
    """Bring the cache down to the low watermark where it is above the high one.

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
                plan = plan_trim(
                    candidates(layout, now),
                    free_bytes=free_on_disk(layout),
                    limits=limits if first is None else limits._replace(high=limits.low),
                    now=now,
                    free_files=free_files(layout),
                )
                first = first or plan
                if dry_run:
                    return Report(plan, _until_enough(plan, lambda _: True))
                turn = min(until, time.monotonic() + _TURN_S)
                gone = _execute(layout, plan, until=turn)
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
    for plan, lacking in _plans(layout, limits, incoming_bytes, what=what, owner=owner):
        if not plan.possible:
            raise lacking
        until = min(deadline, time.monotonic() + _TURN_S)
        if not plan.done(_execute(layout, plan, until=until)):
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
    for plan, lacking in _plans(layout, limits, size_bytes, what=what, owner=owner):
        if not plan.possible:
            raise lacking


def _plans(
    layout: Layout, limits: Limits, incoming_bytes: int, *, what: str, owner: int | None
) -> Iterator[tuple[Plan, NoRoom]]:
    """Yield what has to be freed, in a user's share first, each with what to say if it cannot be.

    Raises TooLarge.
    """
    check_fits(limits, incoming_bytes, what=what, owner=owner)
    if owner is not None and limits.user_share:
        yield _share_plan(layout, limits, incoming_bytes, owner, what=what)
    now = time.time()
    works = inflight.under_way(layout)
    plan = plan_room(
        candidates(layout, now),
        free_bytes=free_on_disk(layout),
        written_bytes=sum(work["written"] for work in works),
        reserved_bytes=sum(work["coming"] for work in works),
        incoming_bytes=incoming_bytes,
        limits=limits,
        now=now,
        under_way=len(works),
        free_files=free_files(layout),
    )
    needs = f"it needs {format_size(incoming_bytes)}, " if incoming_bytes else ""
    wanted = [format_size(plan.wanted_bytes)] if plan.wanted_bytes or not plan.wanted_files else []
    wanted += [f"{plan.wanted_files} images, for their number,"] if plan.wanted_files else []
    why = f"{needs}{' and '.join(wanted)} would have to be freed: {plan.describe()}"
    yield plan, NoRoom(f"there is no room on this node for {what}", why=why)


def _share_plan(
    layout: Layout, limits: Limits, incoming_bytes: int, owner: int, *, what: str
) -> tuple[Plan, NoRoom]:
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
    return plan, NoRoom(
        f"there is no room for {what} in your share of this node's cache",
        why=f"this site lets each user keep {format_size(limits.user_share)} of private "
        f"images on a node, and of yours {plan.describe()}",
        do="Wait until your other jobs on this node have ended, or use images that all share.",
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


def evict(layout: Layout, key: str) -> bool:
    """Remove one image unless a job uses it or somebody is at work on it."""
    try:
        with held(layout.lock(key), deadline=time.monotonic(), waiting=lambda _: None):
            if not lease.close_to_hits(layout, key):
                return False
            entry = store.load_entry(layout, key)
            if entry is None:
                return False
            store.forget(layout, entry)
    except DeadlinePassed:
        return False
    events.record(layout.events, "evict", key=key, bytes=entry.size_bytes)
    return True


def _execute(layout: Layout, plan: Plan, *, until: float) -> tuple[Candidate, ...]:
    """Evict what is planned until it is enough, or until a time.monotonic() value."""

    def gone(candidate: Candidate) -> bool:
        return evict(layout, candidate.key)

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
