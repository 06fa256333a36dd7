"""The way to an image by the site tier: it is fetched and converted once, and copied from there.

A node that finds nothing there and is elected brings the image into its own cache, by all the
checks that there are, and from there into the tier. So the tier holds what root has verified,
and nothing that a process without privileges could write to.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from contextlib import AbstractContextManager, closing, suppress
from typing import Any

from hpcimg import atomic, digests, schemes
from hpcimg.cache import events
from hpcimg.cache.ensure import Staged
from hpcimg.errors import (
    ConfigError,
    Forbidden,
    HpcimgError,
    NotFound,
    TransientError,
    Unreachable,
    from_dict,
)
from hpcimg.fetch.contract import (
    SITE,
    Converting,
    Declined,
    Fetched,
    Files,
    Listener,
    Offer,
    Outcome,
    Unchanged,
    Way,
    Whole,
)
from hpcimg.fronts import Asked, Front
from hpcimg.tier import records
from hpcimg.tier.child import Child
from hpcimg.tier.keeper import Keeper, Rules
from hpcimg.tier.places import Trouble
from hpcimg.tier.records import Record
from hpcimg.worker import accounts

log = logging.getLogger(__name__)
_LEFT_ALONE_S = 60.0  # a tier that did not answer
_PART = 0.5  # of the time that is left, for the tier
_JITTER_MAX_S = 5.0  # of nodes that go to the origin all at once
_RELEASE_S = 2.0


def open_front(asked: Asked, behind: Way) -> AbstractContextManager[TierFront] | None:
    """Return the site tier's way to what is asked for, in front of the way `behind`.

    None where the tier has nothing to do with it: it has what all may read. Who is not root
    has a cache and credentials of their own. What is mounted is on all nodes already, and is
    looked at by each for each job.
    """
    origin = asked.origin
    shared = os.geteuid() == 0 and origin.owner is None and not origin.as_user
    if not shared or schemes.of(origin.wanted.scheme).mounted:
        return None
    return closing(TierFront(asked, behind))


class TierFront(Front):
    """The tier in front of another way, for one image."""

    def __init__(self, asked: Asked, behind: Way) -> None:
        super().__init__(behind)
        self._config = asked.config
        self._request = asked.request
        self._layout = asked.cache.layout
        self._uri = asked.request.reference.uri
        # Nodes may make different formats of the same layers.
        name = f"{asked.request.reference.address} {asked.cache.image_format}"
        self._id = hashlib.sha256(name.encode()).hexdigest()
        self._child: Child | None = None
        self._ours = False

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        found = self._find(listener)
        record = records.from_fields(found["record"]) if found.get("record") else None
        if found["is"] == "there" and record:
            outcome = self._copied(record, descriptor, listener)
            if outcome is not None:
                return outcome
        elif found["is"] == "failed":
            raise self._told_before(from_dict(found["error"]))
        elif found["is"] == "ours":
            self._ours = True
            return self._fetch(descriptor, listener, record, validator=validator)
        elif found["is"] == "busy":
            log.warning("%s: another node has not got it done; going to the origin", self._uri)
            events.record(self._layout.events, "site_busy", job=self._request.job)
            time.sleep(random.uniform(0, _JITTER_MAX_S))
        return self.behind.fetch(descriptor, listener, validator=validator)

    def convert(
        self, descriptor: int, *, image_config: str, layers: Any, progress: Converting
    ) -> Fetched:
        def told(done: int, total: int | None, beside: int) -> None:
            self._live()
            progress(done, total, beside)

        return self.behind.convert(
            descriptor, image_config=image_config, layers=layers, progress=told
        )

    def finish(self, staged: Staged) -> None:
        """Put the image into the tier, where we were to bring it."""
        if self._ours and staged.how != "stale":
            self.stock(staged)

    def stock(self, staged: Staged) -> None:
        """Put an image of this node's cache into the tier."""
        entry = staged.entry
        record = Record(
            self._uri, entry.key, entry.extension, entry.sha256, entry.size_bytes, entry.source,
            staged.validator, time.time(), self._request.reference.pinned,
        )  # fmt: skip
        try:
            file = os.open(staged.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                self._ask("stock", file=file, record=record._asdict())
            finally:
                os.close(file)
            self._ours = False
        except (Trouble, OSError) as trouble:
            self._passed_over(str(trouble), unfinished=True)

    def close(self) -> None:
        """Give back what we hold."""
        if self._child:
            if self._ours:
                with suppress(Trouble):
                    late = time.monotonic() + _RELEASE_S
                    self._child.ask(do="release", patience_s=_RELEASE_S, until=late)
            self._child.end()

    def _find(self, listener: Listener) -> dict[str, Any]:
        """Ask where the image is to come from; "none" where the tier cannot be used."""
        try:
            if self._left_alone():
                return {"is": "none"}
            return self._ask("find", heard=lambda _: listener.progress("waiting", 0, None))
        except Trouble as trouble:
            self._passed_over(str(trouble))
            return {"is": "none"}

    def _fetch(
        self, descriptor: int, listener: Listener, record: Record | None, *, validator: str
    ) -> Outcome:
        """Fetch for all; `record` is what the tier has, and may be out of date."""
        known = record.validator if record else validator
        live = _Live(listener, self)
        try:
            outcome = self.behind.fetch(descriptor, live, validator=known)
        except (Unreachable, TransientError) as error:
            if record and isinstance(error, Unreachable):
                log.warning("%s: taking what the site has: %s", self._uri, error)
                outcome = Unchanged()
            else:
                self._failed(error)
                raise
        except HpcimgError as error:
            self._failed(error)
            raise
        if not isinstance(outcome, Unchanged) or not record or known == validator:
            return outcome
        copied = self._copied(record, descriptor, listener)
        if copied is not None:
            return copied
        return self.behind.fetch(descriptor, live, validator=validator)

    def _copied(self, record: Record, descriptor: int, listener: Listener) -> Outcome | None:
        """Copy an image from the tier; None where that did not work, and the file is empty."""
        offer = Whole(
            record.validator, record.key, record.sha256, record.size_bytes, record.source, SITE
        )
        if listener.offered(offer) is None:
            return Declined()
        size = record.size_bytes

        def heard(said: dict[str, Any]) -> None:
            listener.progress("fetching", int(said["bytes"]), size)

        try:
            self._ask("copy", heard=heard, file=descriptor, record=record._asdict())
            fetched = digests.of_file(descriptor, uri=self._uri, deadline=self._request.deadline)
            if fetched == Fetched(size, record.sha256):
                return fetched
            log.warning("the site tier has a damaged image of %s, which is removed", self._uri)
            events.record(self._layout.events, "site_damaged", job=self._request.job)
            self._ask("damaged", record=record._asdict())
        except Trouble as trouble:
            self._passed_over(str(trouble))
        os.ftruncate(descriptor, 0)
        return None

    def _ask(self, what: str, **question: Any) -> dict[str, Any]:
        """Ask the child. Raises Trouble where the tier does not do it in a part of the time."""
        now = time.monotonic()
        if self._child is None:
            config = self._config
            rules = Rules(
                config.site_path, config.site_lease_s, config.site_wait_s, config.tag_ttl_s,
                config.error_ttl_s,
            )  # fmt: skip
            account = _account(config.site_account, config.account)

            def work(channel: Any) -> None:
                Keeper(rules, self._id, channel).run()

            self._child = Child(work, uid_gid=account)
        patience_s = self._config.connect_timeout_s
        if what in ("copy", "stock"):
            patience_s = self._config.stall_timeout_s
        until = now + (self._request.deadline - now) * _PART
        return self._child.ask(do=what, patience_s=patience_s, until=until, **question)

    def _live(self) -> None:
        if self._ours and self._child:
            self._child.tell(do="live")

    def _failed(self, error: HpcimgError) -> None:
        """Let the other nodes know what asking again does not change, or not yet."""
        for_all = isinstance(error, (NotFound, Forbidden)) or error.retry_after_s
        with suppress(Trouble):
            if for_all:
                self._ask("fail", error=error.to_dict())
                self._ours = False

    def _told_before(self, error: HpcimgError) -> HpcimgError:
        error.do += " (Another node was told so.)"
        return error

    def _passed_over(self, why: str, *, unfinished: bool = False) -> None:
        """Say that the tier could not be used, and leave it alone for a while."""
        does = "is not put there" if unfinished else "goes to the origin"
        log.warning("the site tier is passed over, and %s %s: %s", self._uri, does, why)
        events.record(self._layout.events, "site_failed", job=self._request.job, message=why)
        with suppress(OSError):
            atomic.write_file(_down(self._layout.state), why)

    def _left_alone(self) -> bool:
        try:
            age_s = time.time() - os.stat(_down(self._layout.state)).st_mtime
        except FileNotFoundError:
            return False
        return 0 <= age_s < _LEFT_ALONE_S


class _Live:
    """A listener that tells the child on its way that we are alive."""

    def __init__(self, listener: Listener, front: TierFront) -> None:
        self._listener = listener
        self._front = front

    def offered(self, offer: Offer | Whole) -> Files | None:
        return self._listener.offered(offer)

    def arrived(self, number: int, fetched: Fetched) -> None:
        self._listener.arrived(number, fetched)

    def progress(self, phase: str, done: int, total: int | None) -> None:
        self._front._live()
        self._listener.progress(phase, done, total)


def _down(state: str) -> str:
    return f"{state}/site-down"


def _account(name: str, fetches: str) -> tuple[int, int] | None:
    """Return who writes in the tier, None for root. Raises Trouble."""
    if not name:
        return None
    if name == (fetches or accounts.DEFAULT):
        raise Trouble(
            f"[site] account is {name}, which fetches: what it runs could change all images"
        )
    try:
        account = accounts.unprivileged(name)
    except ConfigError as error:
        raise Trouble(error.brief) from None
    assert account
    return account.uid, account.gid
