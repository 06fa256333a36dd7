"""The way from a reference to a finished image that a job holds a lease on.

    fresh? -> lease                                      nothing is waited for
    otherwise: lock the reference -> fresh now? -> fetch -> verify -> publish

Lock order: reference, then key, then "room". Every step is safe without the
locks too: they only see to it that work is done once.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

from hpcimg import formats
from hpcimg.cache import evict, failures, lease, store
from hpcimg.cache.inflight import Inflight
from hpcimg.cache.layout import Layout
from hpcimg.cache.store import Entry, Ref
from hpcimg.errors import (
    Damaged,
    DeadlinePassed,
    HpcimgError,
    Interrupted,
    NoRoom,
    TooLarge,
    TransientError,
    Unreachable,
)
from hpcimg.fetching import Declined, Fetch, Fetched, Offer, Progress, Unchanged
from hpcimg.locks import held
from hpcimg.reference import Reference
from hpcimg.units import format_duration, format_size

log = logging.getLogger(__name__)
_URIS_MAX = 32
_GRACE_S = 60.0  # how long a server that did not answer is left alone


class Cache(NamedTuple):
    """A cache and its rules. `max_image_size` of 0 is no limit of its own."""

    layout: Layout
    limits: evict.Limits
    tag_ttl_s: float
    max_image_size: int = 0


class Staged(NamedTuple):
    """A finished image. `how` is hit, waited, fetched, unchanged or stale."""

    entry: Entry
    path: str
    how: str
    fresh_until: float


def ensure(
    cache: Cache,
    reference: Reference,
    *,
    job: str,
    owner: int | None,
    deadline: float,
    fetch: Fetch,
    progress: Progress = lambda *_: None,
) -> Staged:
    """Return the finished image that `reference` stands for, fetched if need be.

    `job` holds a lease on it when this returns; "" takes none. `owner` is the
    uid whose private image it is, None for one that all share. `deadline` is a
    time.monotonic() value for everything together. `progress` hears what `fetch`
    says of its progress. Raises HpcimgError.
    """
    return _Ensure(cache, reference, job, owner, deadline, progress).run(fetch)


class _Ensure:
    """One call of `ensure`: what all of its steps need to know."""

    def __init__(
        self,
        cache: Cache,
        reference: Reference,
        job: str,
        owner: int | None,
        deadline: float,
        tell: Progress,
    ) -> None:
        self.cache = cache
        self.layout = cache.layout
        self.reference = reference
        self.job = job
        self.owner = owner
        self.deadline = deadline
        self.tell = tell
        self.ref_id = store.ref_id(reference.uri, owner)

    def run(self, fetch: Fetch) -> Staged:
        ref = store.load_ref(self.layout, self.ref_id)
        staged = self._fresh(ref, "hit")
        if staged:
            return staged
        began = time.monotonic()
        with self._lock(self.ref_id) as waited:
            ref = store.load_ref(self.layout, self.ref_id)
            staged = self._fresh(ref, "waited" if waited else "hit")
            if staged:
                return staged
            failure = failures.since(self.layout, self.ref_id, began)
            if failure:
                raise failure
            if waited:
                store.sweep(self.layout)  # who held the lock may have been killed
            cached = store.load_entry(self.layout, ref.key) if ref else None
            try:
                return self._fetch(fetch, ref if cached else None)
            except (DeadlinePassed, Interrupted):
                raise  # ours; who waits may have more time, and fetches in a process of its own
            except HpcimgError as error:
                failures.record(self.layout, self.ref_id, error)
                raise

    def _fresh(self, ref: Ref | None, how: str) -> Staged | None:
        if ref is None or not ref.fresh(self.cache.tag_ttl_s, time.time()):
            return None
        return self._leased(ref, how)

    def _fetch(self, fetch: Fetch, ref: Ref | None) -> Staged:
        """Ask the source; `ref` is what the cache holds and may be out of date."""
        with ExitStack() as stack:
            inflight = stack.enter_context(
                Inflight(
                    self.layout,
                    self.ref_id,
                    uri=self.reference.uri,
                    job=self.job,
                    private=self.owner is not None,
                )
            )
            temp, descriptor = stack.enter_context(store.unfinished(self.layout, self.ref_id))
            offers: list[Offer] = []
            locked_key = ""

            def offered(offer: Offer) -> bool:
                nonlocal locked_key
                offers.append(offer)
                inflight.update("asking")  # an earlier offer needs no room any more
                self._check_size(offer.size_bytes or 0)
                if offer.sha256:
                    key = self._key(offer.sha256)
                    if key != locked_key:
                        stack.enter_context(self._lock(key))
                    locked_key = key
                    if store.load_entry(self.layout, key):
                        return False
                self._make_room(offer.size_bytes or 0, inflight)
                return True

            def progress(phase: str, done: int, total: int | None) -> None:
                self._check_size(done)
                if total is not None and done > total:
                    raise Damaged(f"{self.reference.uri} does not end where it was announced to")
                self.tell(phase, done, total)
                if inflight.update(phase, done, total) and total is None:
                    self._make_room_as_it_grows(done, inflight)

            try:
                outcome = fetch(
                    descriptor,
                    validator=ref.validator if ref else "",
                    offered=offered,
                    progress=progress,
                )
            except (Unreachable, DeadlinePassed) as error:
                staged = self._stale(ref, error)
                if staged is None:
                    raise
                return staged
            if isinstance(outcome, Unchanged) and ref:
                staged = self._resolved(ref.key, ref.validator, "unchanged", locked=False)
                # While the server was asked, others may have needed its room.
                return staged or self._fetch(fetch, None)
            offer = offers[-1]
            if isinstance(outcome, Declined):
                return self._kept(self._resolved(locked_key, offer.validator, "hit", locked=True))
            assert isinstance(outcome, Fetched)
            inflight.update("checking", outcome.size_bytes, outcome.size_bytes)
            if offer.size_bytes is None:
                self._make_room_as_it_grows(outcome.size_bytes, inflight)
            entry = self._verify(descriptor, offer, outcome)
            if not locked_key:
                stack.enter_context(self._lock(entry.key))
            if not store.load_entry(self.layout, entry.key):
                store.publish(self.layout, entry, temp, descriptor)
            return self._kept(self._resolved(entry.key, offer.validator, "fetched", locked=True))

    def _verify(self, descriptor: int, offer: Offer, fetched: Fetched) -> Entry:
        """Check every promise that was made about the file, and what it is."""
        uri = self.reference.uri
        size = os.fstat(descriptor).st_size
        promised = fetched.size_bytes if offer.size_bytes is None else offer.size_bytes
        if not size == fetched.size_bytes == promised:
            raise Damaged(f"{uri} is cut short", why=f"{size} bytes arrived of {promised}")
        if offer.sha256 and offer.sha256 != fetched.sha256:
            raise Damaged(
                f"{uri} is not what was announced",
                why=f"its sha256 is {fetched.sha256}, promised was {offer.sha256}",
            )
        image = formats.identify(descriptor, uri)
        return Entry(
            key=self._key(fetched.sha256),
            extension=image.extension,
            sha256=fetched.sha256,
            size_bytes=size,
            architecture=image.architecture,
            uris=(uri,),
            fetched=time.time(),
            owner=self.owner,
        )

    def _resolved(self, key: str, validator: str, how: str, *, locked: bool) -> Staged | None:
        """Write down what the reference stands for now, and hand the image out if it is there."""
        ref = Ref(self.reference.uri, key, validator, time.time(), pinned=self.reference.pinned)
        store.save_ref(self.layout, self.ref_id, ref)
        return self._leased(ref, how, locked=locked)

    def _kept(self, staged: Staged | None) -> Staged:
        if staged is None:
            # Only where locks do nothing, or somebody removed it by hand.
            raise NoRoom(f"{self.reference.uri} was evicted again at once")
        return staged

    def _stale(self, ref: Ref | None, error: TransientError) -> Staged | None:
        """Serve what the cache has when the server does not answer."""
        if ref is None:
            return None
        log.warning(
            "%s: serving the image of %s ago: %s",
            self.reference.uri,
            format_duration(time.time() - ref.resolved),
            error,
        )
        ref = dataclasses.replace(ref, grace=time.time() + _GRACE_S)
        store.save_ref(self.layout, self.ref_id, ref)
        return self._leased(ref, "stale")

    def _leased(self, ref: Ref, how: str, *, locked: bool = False) -> Staged | None:
        """Lease the image to the job, then look whether it is there: in this order."""
        key = ref.key
        if self.job and lease.take(self.layout, key, self.job):
            entry = store.load_entry(self.layout, key)
        else:
            with ExitStack() as stack:
                if not locked:
                    stack.enter_context(self._lock(key))
                entry = store.load_entry(self.layout, key)
                if entry:
                    lease.open_to_hits(self.layout, key)
                    if self.job:
                        lease.take(self.layout, key, self.job)
        if entry is None:
            return None
        store.mark_used(self.layout, key)
        if ref.uri not in entry.uris:
            self._add_uri(entry, ref.uri)
        path = store.path_of(self.layout, entry)
        return Staged(entry, path, how, ref.fresh_until(self.cache.tag_ttl_s))

    def _add_uri(self, entry: Entry, uri: str) -> None:
        # Lost when two add one at the same moment; the next use adds it again.
        uris = (*entry.uris, uri)[-_URIS_MAX:]
        store.save_entry(self.layout, dataclasses.replace(entry, uris=uris))

    def _key(self, sha256: str) -> str:
        return f"{'' if self.owner is None else f'u{self.owner}-'}sha256-{sha256}"

    def _lock(self, name: str) -> AbstractContextManager[bool]:
        return held(self.layout.lock(name), deadline=self.deadline, waiting=self._waiting)

    def _waiting(self, seconds: float) -> None:
        log.info(
            "job %s waits for %s, which another job is bringing (%s so far)",
            self.job or "-",
            self.reference.uri,
            format_duration(seconds),
        )

    def _check_size(self, size_bytes: int) -> None:
        limit = self.cache.max_image_size
        if limit and size_bytes > limit:
            raise TooLarge(
                f"{self.reference.uri} is too large",
                why=f"this site takes images up to {format_size(limit)}",
            )

    def _make_room_as_it_grows(self, size_bytes: int, inflight: Inflight) -> None:
        """Look for room for an image whose size was not announced; so much is there by now."""
        evict.check_fits(self.cache.limits, size_bytes, what=self.reference.uri)
        self._make_room(0, inflight)

    def _make_room(self, size_bytes: int, inflight: Inflight) -> None:
        with self._lock("room"):
            evict.make_room(
                self.layout,
                self.cache.limits,
                size_bytes,
                what=self.reference.uri,
                deadline=self.deadline,
            )
            if size_bytes:
                inflight.update("fetching", 0, size_bytes)
