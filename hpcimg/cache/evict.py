"""Eviction: which images go when room is needed, and their going."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from hpcimg.cache import events, inflight, lease, store
from hpcimg.cache.paths import Layout, owned
from hpcimg.cache.policy import Limits
from hpcimg.errors import DeadlinePassed, NoRoom, TooLarge, explained
from hpcimg.locks import held
from hpcimg.units import format_size

_JOBS_NAMED = 8


class Candidate(NamedTuple):
    """An image as eviction sees it. `jobs` hold leases on it; it is private to `owner`."""

    key: str
    size_bytes: int
    last_used: float
    jobs: tuple[str, ...] = ()
    owner: int | None = None


class Plan(NamedTuple):
    """What to free and in which order; what cannot go, and why."""

    wanted_bytes: int
    victims: tuple[Candidate, ...]
    in_use: tuple[Candidate, ...]
    too_young: tuple[Candidate, ...]

    def describe(self) -> str:
        """Say what there is to free and what there is not."""
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
        return ", ".join(parts)


class Report(NamedTuple):
    """What an eviction did."""

    plan: Plan
    evicted: tuple[Candidate, ...]

    @property
    def freed_bytes(self) -> int:
        return sum(c.size_bytes for c in self.evicted)


def plan_trim(
    candidates: Iterable[Candidate], *, free_bytes: int, limits: Limits, now: float
) -> Plan:
    """Plan the way down to the low watermark, once the high one is passed or the floor touched."""
    candidates = list(candidates)
    used = sum(c.size_bytes for c in candidates)
    wanted = used - limits.low if used > limits.high else 0
    wanted = max(wanted, limits.min_free - free_bytes, 0)
    return _plan(candidates, wanted, min_age_s=limits.min_age_s, now=now)


def plan_room(
    candidates: Iterable[Candidate],
    *,
    free_bytes: int,
    reserved_bytes: int,
    incoming_bytes: int,
    limits: Limits,
    now: float,
    written_bytes: int = 0,
) -> Plan:
    """Plan just enough room for an image that a job waits for.

    `written_bytes` is what fetches under way have on the disk, `reserved_bytes`
    what they will still write. Age protects no image here: the job at hand is
    worth more than one that may come.
    """
    candidates = list(candidates)
    used = sum(c.size_bytes for c in candidates)
    coming = reserved_bytes + incoming_bytes
    over = used + written_bytes + coming - limits.max_size
    wanted = max(over, limits.min_free + coming - free_bytes, 0)
    return _plan(candidates, wanted, min_age_s=0.0, now=now)


def plan_share(
    candidates: Iterable[Candidate],
    owner: int,
    *,
    coming_bytes: int,
    limits: Limits,
    now: float,
) -> Plan:
    """Plan room in one user's share: of what is private to a user, only that user's own goes.

    `coming_bytes` is what the fetches for this user have written and will write.
    """
    own = [c for c in candidates if c.owner == owner]
    over = sum(c.size_bytes for c in own) + coming_bytes - limits.user_share
    return _plan(own, max(over, 0), min_age_s=0.0, now=now)


def _plan(candidates: list[Candidate], wanted: int, *, min_age_s: float, now: float) -> Plan:
    in_use = tuple(c for c in candidates if c.jobs)
    idle = [c for c in candidates if not c.jobs]
    too_young = tuple(c for c in idle if now - c.last_used < min_age_s)
    old = sorted(set(idle) - set(too_young), key=lambda c: (c.last_used, c.key))
    return Plan(wanted, tuple(old), in_use, too_young)


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

    Ends after about `time_s` seconds, with less freed. Takes the lock "room", so
    that two of these do not free the same bytes twice. Raises DeadlinePassed
    where that is held all the time, NoRoom and CacheUnusable for what the disk does.
    """
    until = time.monotonic() + time_s
    with held(layout.lock("room"), deadline=until, waiting=lambda _: None):
        now = time.time()
        plan = plan_trim(
            candidates(layout, now), free_bytes=free_on_disk(layout), limits=limits, now=now
        )
        if dry_run:
            return Report(plan, _enough(plan))
        return _execute(layout, plan, until=until)


def make_room(
    layout: Layout,
    limits: Limits,
    incoming_bytes: int,
    *,
    what: str,
    deadline: float,
    owner: int | None = None,
) -> Report:
    """Free what an image of `incoming_bytes`, beyond what is written of it, needs.

    Where it is private to `owner`, in that user's share first. Hold the lock
    "room" until the image is announced in `inflight`, so that two fetches do not
    count on the same bytes. Raises TooLarge where the image could never fit,
    NoRoom where it does not fit now.
    """
    check_fits(limits, incoming_bytes, what=what, owner=owner)
    if owner is not None and limits.user_share:
        _make_room_in_share(layout, limits, incoming_bytes, owner, what=what, deadline=deadline)
    now = time.time()
    under_way = inflight.under_way(layout)
    plan = plan_room(
        candidates(layout, now),
        free_bytes=free_on_disk(layout),
        written_bytes=sum(work["written"] for work in under_way),
        reserved_bytes=sum(work["coming"] for work in under_way),
        incoming_bytes=incoming_bytes,
        limits=limits,
        now=now,
    )
    report = _execute(layout, plan, until=deadline)
    if report.freed_bytes < plan.wanted_bytes:
        needs = f"it needs {format_size(incoming_bytes)}, " if incoming_bytes else ""
        raise NoRoom(
            f"there is no room on this node for {what}",
            why=f"{needs}{format_size(plan.wanted_bytes)} would have to be freed: "
            f"{plan.describe()}",
        )
    return report


def _make_room_in_share(
    layout: Layout, limits: Limits, incoming_bytes: int, owner: int, *, what: str, deadline: float
) -> None:
    now = time.time()
    own = [work for work in inflight.under_way(layout) if work["id"].startswith(owned("", owner))]
    coming = incoming_bytes + sum(work["written"] + work["coming"] for work in own)
    found = candidates(layout, now)
    plan = plan_share(found, owner, coming_bytes=coming, limits=limits, now=now)
    report = _execute(layout, plan, until=deadline)
    if report.freed_bytes < plan.wanted_bytes:
        raise NoRoom(
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


def _execute(layout: Layout, plan: Plan, *, until: float) -> Report:
    evicted: list[Candidate] = []
    freed = 0
    for candidate in plan.victims:
        if freed >= plan.wanted_bytes or time.monotonic() > until:
            break
        if evict(layout, candidate.key):
            evicted.append(candidate)
            freed += candidate.size_bytes
    return Report(plan, tuple(evicted))


def _enough(plan: Plan) -> tuple[Candidate, ...]:
    chosen: list[Candidate] = []
    for candidate in plan.victims:
        if sum(c.size_bytes for c in chosen) >= plan.wanted_bytes:
            break
        chosen.append(candidate)
    return tuple(chosen)


def free_on_disk(layout: Layout) -> int:
    """Return the bytes that are free on the cache's file system."""
    seen = os.statvfs(layout.cache)
    return seen.f_bavail * seen.f_frsize
