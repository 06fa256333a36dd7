"""From a reference to a complete image on which the job holds a lease.

    fresh? -> lease                                      no waiting
    otherwise: lock the reference -> fresh now? -> fetch (and convert) -> verify -> publish

An image in layers is converted while they arrive, with its highest layer first, each as soon as its
digest is known to be right. If the fetch fails, this was for nothing; the layers are kept.

Lock order: reference, fetching of a key, fetching of blobs by their digests, "room", then the key
itself, or a blob's, for a moment. Every step is safe without the locks too: they only avoid
duplicate work. So nobody waits for a lock whose holder makes no progress.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from hpcimg.cache import failures, inflight, lease, store
from hpcimg.cache.arrival import Arrival
from hpcimg.cache.failures import Memory
from hpcimg.cache.inflight import Inflight
from hpcimg.cache.paths import fetching, owned
from hpcimg.cache.policy import Cache
from hpcimg.cache.store import Entry, Ref
from hpcimg.errors import (
    DeadlinePassed,
    HpcimgError,
    Interrupted,
    NoRoom,
    TransientError,
    Unreachable,
    explained,
)
from hpcimg.fetch.contract import Declined, Fetched, Gathered, Request, Unchanged, Way
from hpcimg.locks import held
from hpcimg.units import format_duration, format_size

log = logging.getLogger(__name__)
FORMATS = ("sif", "squashfs")  # of converted images; their keys end with these
_URIS_MAX = 32
# A mounted file is checked for each job; this is how long the checking account's groups are cached.
_RIGHTS_S = 3600.0
_CHANCES = 2  # how often one job waits for a stalled fetch; after that, hardly at all
_LATER_PATIENCE_S = 2.0
NO_MEMORY = Memory()


class Staged(NamedTuple):
    """A complete image. `how` is hit, waited, fetched, unchanged or stale.

    `validator` is the source's. Until `fresh_until`, a Unix time, the reference stands for this
    image, a mounted one as long as its file is unchanged. `via` says where its bytes came from, as
    in an Offer, "" if none were transferred.
    """

    entry: Entry
    path: str
    how: str
    fresh_until: float
    validator: str
    via: str = ""


@explained()
def ensure(cache: Cache, request: Request, way: Way, memory: Memory = NO_MEMORY) -> Staged:
    """Return the requested image, fetched by `way` if necessary.

    The job holds a lease on it when this returns. `memory` selects the cached failures that may
    answer in place of the source. Raises HpcimgError.
    """
    return _Ensure(cache, request, way, memory).run()


class _Ensure:
    """One call of `ensure`: the state shared by its steps."""

    def __init__(self, cache: Cache, request: Request, way: Way, memory: Memory) -> None:
        self.cache = cache
        self.layout = cache.layout
        self.request = request
        self.reference = request.reference
        self.way = way
        self.memory = memory
        self.mounted = bool(request.reference.mounted_file)
        self.came = time.time()
        address = request.reference.address
        if cache.other_format:
            address = f"{address} {cache.image_format}"  # addresses contain no blanks
        self.ref_id = store.ref_id(address, request.owner)
        self.holds: list[str] = []  # names of locks
        self.inflight: Inflight | None = None
        self.chances = _CHANCES

    def run(self) -> Staged:
        ref = self._load_ref()
        staged = self._fresh(ref, "hit")
        if staged:
            return staged
        began = self.request.came or time.monotonic()
        with self._lock(self.ref_id) as waited:
            ref = self._load_ref()
            staged = self._fresh(ref, "waited" if waited else "hit")
            if staged:
                return staged
            failure = failures.recall(self.layout, self.ref_id, self.memory, began=began)
            if failure:
                raise failure
            if waited:
                store.sweep(self.layout)  # the previous holder of the lock may have been killed
            cached = store.load_entry(self.layout, ref.key) if ref else None
            try:
                staged = self._fetch(ref if cached else None)
            except (DeadlinePassed, Interrupted):
                raise  # ours; waiting processes may have more time, and fetch themselves
            except HpcimgError as error:
                failures.record(self.layout, self.ref_id, self.memory, error)
                raise
            failures.forget(self.layout, self.ref_id, self.memory)
            return staged

    def _load_ref(self) -> Ref | None:
        if self.request.agreed:
            return self._agreed()
        ref = store.load_ref(self.layout, self.ref_id)
        made_as = ref.key.rpartition("-")[2] if ref else ""
        if made_as in FORMATS and made_as != self.cache.image_format:
            return None  # the site's policy has changed since
        return ref

    def _agreed(self) -> Ref:
        """Return a reference to the image that the job's nodes agreed on; it is never saved."""
        key = owned(self.request.agreed, self.request.owner)
        return Ref(self.reference.uri, key, "", time.time(), pinned=True)

    def _fresh(self, ref: Ref | None, how: str) -> Staged | None:
        now = time.time()
        # A check of a mounted file by another process since this job came counts for it as well.
        ttl_s = now - self.came if self.mounted else self.cache.tag_ttl_s
        if ref is None or self.request.ask or not ref.fresh(ttl_s, now):
            return None
        return self._leased(ref, how)

    def _fetch(self, ref: Ref | None) -> Staged:
        """Ask the source; `ref` is the possibly outdated record in the cache."""
        uri = self.reference.uri
        asked = time.time() if self.mounted else None
        # If another process is fetching the same image, this name is taken.
        name = self.ref_id if self.ref_id in self.holds else f"{self.ref_id}.{os.getpid()}"
        with (
            Inflight(
                self.layout, name, self.request, holds=self.holds, min_rate=self.cache.min_rate
            ) as under_way,
            self._shown_by(under_way),
            Arrival(self.cache, under_way, self.request, self.way, lock=self._lock) as arrival,
        ):
            try:
                outcome = self.way.fetch(
                    arrival.descriptor, arrival, validator=ref.validator if ref else ""
                )
            except (Unreachable, DeadlinePassed) as error:
                staged = self._stale(ref, error, locked=arrival.locked)
                if staged is None:
                    raise
                return staged
            except NoRoom:
                arrival.check_arrived()  # the disk may be full of what was not announced
                raise
            if isinstance(outcome, Unchanged) and ref:
                staged = self._resolved(ref.key, ref.validator, "unchanged", asked, locked=False)
                # While the server was asked, others may have used the room.
                return staged or self._fetch(None)
            assert arrival.offer
            how = "hit" if isinstance(outcome, Declined) else "fetched"
            if isinstance(outcome, Fetched):
                arrival.finish(outcome)
            elif isinstance(outcome, Gathered):
                arrival.convert()
            locked = arrival.locked == arrival.key
            staged = self._resolved(arrival.key, arrival.offer.validator, how, asked, locked=locked)
            if staged is None:
                # Only where locks do nothing, or if somebody removed it by hand.
                raise NoRoom(f"{uri} was evicted again immediately")
            return staged._replace(via=arrival.offer.via if how == "fetched" else "")

    def _resolved(
        self, key: str, validator: str, how: str, asked: float | None, *, locked: bool
    ) -> Staged | None:
        """Record what the reference stands for, now or at the time that it was `asked` for.

        Return the image if it exists.
        """
        resolved = time.time() if asked is None else asked
        ref = Ref(self.reference.uri, key, validator, resolved, pinned=self.reference.pinned)
        if not self.request.agreed:  # it may be what a tag stood for a while ago
            store.save_ref(self.layout, self.ref_id, ref)
        return self._leased(ref, how, locked=locked)

    def _stale(self, ref: Ref | None, error: TransientError, *, locked: str) -> Staged | None:
        """Return the cached image when the server does not answer; `locked` is a key or ""."""
        if ref is None:
            return None
        log.warning(
            "%s: serving the image cached %s ago: %s",
            self.reference.uri,
            format_duration(time.time() - ref.resolved),
            error,
        )
        ref = ref._replace(grace=time.time() + store.GRACE_S)
        store.save_ref(self.layout, self.ref_id, ref)
        return self._leased(ref, "stale", locked=locked == ref.key)

    def _leased(self, ref: Ref, how: str, *, locked: bool = False) -> Staged | None:
        """Lease the image to the job, then check that it exists: in this order."""
        key = ref.key
        if self.request.job and lease.take(self.layout, key, self.request.job):
            entry = store.load_entry(self.layout, key)
        else:
            with ExitStack() as stack:
                if not locked:
                    stack.enter_context(self._lock(key))
                entry = store.load_entry(self.layout, key)
                if entry:
                    lease.open_to_hits(self.layout, key)
                    if self.request.job:
                        lease.take(self.layout, key, self.request.job)
        if entry is None or not self.cache.trusts(entry):
            return None
        store.mark_used(self.layout, key)
        if ref.uri not in entry.uris:
            self._add_uri(entry, ref.uri)
        path = store.path_of(self.layout, entry)
        fresh_until = ref.fresh_until(_RIGHTS_S if self.mounted else self.cache.tag_ttl_s)
        if self.request.agreed:
            fresh_until = 0.0  # another job asks again
        return Staged(entry, path, how, fresh_until, ref.validator)

    def _add_uri(self, entry: Entry, uri: str) -> None:
        # Lost if two processes add one at the same moment; the next use adds it again.
        uris = (*entry.uris, uri)[-_URIS_MAX:]
        store.save_entry(self.layout, entry._replace(uris=uris))

    @contextmanager
    def _shown_by(self, under_way: Inflight) -> Iterator[None]:
        self.inflight, before = under_way, self.inflight
        try:
            yield
        finally:
            self.inflight = before

    @contextmanager
    def _lock(self, name: str) -> Iterator[bool]:
        """Hold a lock; yield whether there was a wait.

        If its holder makes no progress, hold the second lock, where all who wait for the same
        queue; if that one's holder makes no progress either, hold none.
        """
        waited = False
        with ExitStack() as stack:
            for each in (name, f"{name}.next"):
                lock = held(
                    self.layout.lock(each),
                    deadline=self.request.deadline,
                    waiting=functools.partial(self._waiting, each),
                    tell_every_s=self.cache.patience_s / 4,
                    began=self.request.came,
                )
                try:
                    waited |= stack.enter_context(lock)
                except _NotMoving:
                    waited = True
                    continue
                self.holds.append(each)
                stack.callback(self.holds.remove, each)
                break
            yield waited

    def _waiting(self, name: str, seconds: float) -> None:
        """Log what is being waited for; raise _NotMoving if that is pointless."""
        patience_s = self.cache.patience_s
        patience_s = patience_s if self.chances > 0 else min(patience_s, _LATER_PATIENCE_S)
        works = []
        if name.startswith((fetching(""), self.ref_id)):  # the others are held only for a moment
            works = [w for w in inflight.under_way(self.layout) if name in w.get("holds", ())]
        now = time.monotonic()
        worth_it = any(
            inflight.moves(work, patience_s=patience_s, deadline=self.request.deadline, now=now)
            for work in works
        )
        holder = "; ".join(_described(work) for work in works) or "its progress is unknown"
        job, uri = self.request.job or "-", self.reference.uri
        if not worth_it and (works or seconds >= patience_s):
            self.chances -= 1
            log.warning("job %s stops waiting for %s: %s", job, uri, holder)
            raise _NotMoving
        if self.inflight:
            self.inflight.waits()
        self.request.goes_on()
        waited = format_duration(seconds)
        log.info(
            "job %s waits for %s, which another job is fetching (%s so far; %s)",
            job, uri, waited, holder,
        )  # fmt: skip


class _NotMoving(Exception):
    """The holder of a lock makes no progress."""


def _described(work: dict[str, Any]) -> str:
    of = f" of {format_size(work['total'])}" if work["total"] else ""
    return f"job {work['job'] or '-'} is {work['phase']}, {format_size(work['bytes'])}{of}"
