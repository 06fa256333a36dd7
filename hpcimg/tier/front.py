"""The way to an image through the site tier, where one node puts it and the others copy it.

The node that gets the tier's lease stages the image in its own cache, with all checks, and copies
it from there into the tier. So the tier holds only files that root has verified and that no
unprivileged process can write to.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from typing import Any

from hpcimg import digests, schemes
from hpcimg.cache.ensure import Staged
from hpcimg.errors import Forbidden, HpcimgError, NotFound, Unreachable, from_dict
from hpcimg.fetch.contract import (
    SITE,
    Declined,
    Fetched,
    Listener,
    Outcome,
    Unchanged,
    Way,
    Whole,
)
from hpcimg.fronts import Asked, Front, Reporting
from hpcimg.tier import records
from hpcimg.tier.client import Tier
from hpcimg.tier.places import Trouble
from hpcimg.tier.records import Record

log = logging.getLogger(__name__)
_JITTER_MAX_S = 5.0  # for nodes that would go to the origin all at once


def open_front(asked: Asked, behind: Way) -> AbstractContextManager[TierFront] | None:
    """Return the way through the site tier, in front of the way `behind`; None if it has no use.

    A file on a mounted file system is on all nodes already, and each checks it for each job. A
    user without root has a cache and credentials of their own. The tier holds only what everybody
    may read, but the nodes of one job use it to agree on private images too.
    """
    origin, request = asked.origin, asked.request
    if os.geteuid() != 0 or schemes.of(origin.wanted.scheme).mounted:
        return None
    shared = origin.owner is None and not origin.as_user
    if not shared and not (request.together and not request.reference.pinned):
        return None
    return closing(TierFront(asked, behind, shared=shared))


def copied(
    tier: Tier, record: Record, descriptor: int, listener: Listener, *, deadline: float
) -> Outcome | None:
    """Copy an image from the tier; None if that failed, with the file empty again."""
    offer = Whole(
        record.validator, record.key, record.sha256, record.size_bytes, record.source, SITE
    )
    if listener.offered(offer) is None:
        return Declined()
    size = record.size_bytes

    def heard(said: dict[str, Any]) -> None:
        listener.progress("fetching", int(said["bytes"]), size)

    try:
        found = tier.ask("copy", heard=heard, file=descriptor, record=record._asdict())
        if found["is"] == "gone":  # it was evicted
            return None
        fetched = digests.of_file(descriptor, uri=tier.uri, deadline=deadline)
        if fetched == Fetched(size, record.sha256):
            return fetched
        log.warning("the site tier has a damaged image of %s, which is being removed", tier.uri)
        tier.event("site_damaged")
        tier.ask("damaged", record=record._asdict())
    except Trouble as trouble:
        tier.passed_over(str(trouble))
    os.ftruncate(descriptor, 0)
    return None


class TierFront(Front):
    """The way to one image through the tier."""

    def __init__(self, asked: Asked, behind: Way, *, shared: bool) -> None:
        super().__init__(behind)
        origin = asked.origin
        # Users cannot make a registry send a Retry-After, but they may control a web server.
        in_registry = schemes.of(origin.wanted.scheme).in_registry
        self._tier = Tier(
            asked.config,
            asked.cache,
            asked.request,
            host=origin.wanted.host if in_registry else "",
            login=any(at.shared for at in origin.service.locations),
        )
        self._origin = asked.origin
        # An operator's request, and one that waits as Retry-After said, ignore cached failures.
        self._anew = not asked.request.job or asked.origin.wait_s > 0
        self._deadline = asked.request.deadline
        self._shared = shared
        self._ours = False  # whether this node fetches for all
        self._answered = True  # whether the origin did
        self._agreed: Record | None = None

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        if self._agreed:
            return self._fetch_agreed(self._agreed, descriptor, listener)
        if not self._shared:
            return self.behind.fetch(descriptor, listener, validator=validator)
        for _ in range(2):  # the first image may be damaged, or evicted at this moment
            found = self._find(listener)
            if found["is"] != "there":
                break
            record = records.from_fields(found["record"])
            outcome = copied(self._tier, record, descriptor, listener, deadline=self._deadline)
            if outcome is not None:
                return outcome
        if found["is"] == "failed":
            error = from_dict(found["error"])
            error.do += " (Another node got this error.)"
            raise error
        if found["is"] == "ours":
            self._ours = True
            known = records.from_fields(found["record"]) if found["record"] else None
            return self._fetch(descriptor, listener, known, validator=validator)
        if found["is"] == "busy":
            log.warning("%s: another node makes no progress; going to the origin", self._tier.uri)
            self._tier.event("site_busy")
            time.sleep(random.uniform(0, min(_JITTER_MAX_S, self._tier.time_s() / 10)))
        return self.behind.fetch(descriptor, listener, validator=validator)

    def advance(self, phase: str, done: int) -> None:
        """Let the tier know that we are still at it."""
        self._tier.live(f"{phase} {done}")

    def finish(self, staged: Staged) -> None:
        """Put the image into the tier if this node fetched it for all."""
        if self._ours and self._answered and staged.how != "stale":
            try:
                self._tier.put("stock", staged)
            except Trouble as trouble:
                self._tier.passed_over(str(trouble), unfinished=True)
                return
            self._trim()

    def agreed(self) -> str:
        return self._settled(lambda: self._tier.ask("agreed"))

    def settle(self, staged: Staged) -> str:
        return self._settled(lambda: self._tier.put("agree", staged, shared=self._shared))

    def _settled(self, ask: Callable[[], dict[str, Any]]) -> str:
        if self._origin.wanted.pinned or self._tier.left_alone():
            return ""
        try:
            found = ask()["record"]
            self._agreed = records.from_fields(found) if found else None
        except Trouble as trouble:
            self._tier.passed_over(str(trouble), unfinished=True)
        return self._agreed.key if self._agreed else ""

    def close(self) -> None:
        """Release the tier's lease."""
        self._tier.close()

    def _fetch_agreed(self, record: Record, descriptor: int, listener: Listener) -> Outcome:
        """Fetch the image that the nodes of the job agreed on: from a registry, by its digest."""
        if self._shared:
            outcome = copied(self._tier, record, descriptor, listener, deadline=self._deadline)
            if outcome is not None:
                return outcome
        behind, wanted = self.behind, self._origin.wanted
        if schemes.of(wanted.scheme).in_registry and record.validator.startswith("sha256:"):
            name = wanted.rest.partition("@")[0]
            pinned = wanted._replace(rest=f"{name}@{record.validator}")
            behind = self._origin._replace(wanted=pinned)
        return behind.fetch(descriptor, listener, validator="")

    def _find(self, listener: Listener) -> dict[str, Any]:
        """Ask where to get the image; "none" if the tier cannot be used."""
        try:
            if self._tier.left_alone():
                return {"is": "none"}
            time_s = self._tier.time_s()
            return self._tier.ask(
                "find",
                heard=lambda _: listener.progress("waiting", 0, None),
                anew=self._anew,
                time_s=time_s,
            )
        except Trouble as trouble:
            self._tier.passed_over(str(trouble))
            return {"is": "none"}

    def _fetch(
        self, descriptor: int, listener: Listener, record: Record | None, *, validator: str
    ) -> Outcome:
        """Fetch for all nodes; `record` is the tier's, possibly outdated."""
        known = record.validator if record else validator
        live = Reporting(listener, self)
        try:
            outcome = self.behind.fetch(descriptor, live, validator=known)
        except HpcimgError as error:
            # A node that has the tier's image needs no copy: the cache serves its own as stale.
            if not record or not isinstance(error, Unreachable) or known == validator:
                self._failed(error)
                raise
            log.warning("%s: using the site tier's image: %s", self._tier.uri, error)
            self._answered = False
            os.ftruncate(descriptor, 0)
            outcome = Unchanged()
        if not isinstance(outcome, Unchanged) or not record or known == validator:
            return outcome
        outcome_here = copied(self._tier, record, descriptor, live, deadline=self._deadline)
        if outcome_here is not None:
            return outcome_here
        return self.behind.fetch(descriptor, live, validator=validator)

    def _failed(self, error: HpcimgError) -> None:
        """Share a failure with the other nodes if trying again would not help, or not yet."""
        if isinstance(error, (NotFound, Forbidden)) or error.retry_after_s:
            with suppress(Trouble):
                self._tier.ask("fail", error=error.to_dict())
                self._trim()

    def _trim(self) -> None:
        """Evict from the tier: each fetch and each failure adds files to it."""
        with suppress(Trouble):  # the next fetch tries again
            self._tier.ask("trim", dry_run=False, when_due=True)
