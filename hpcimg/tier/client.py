"""The site tier as a node uses it: questions to a process that looks there, and its troubles."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from contextlib import suppress
from typing import Any

from hpcimg import atomic
from hpcimg.cache import events
from hpcimg.cache.ensure import Staged
from hpcimg.cache.paths import owned
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.errors import ConfigError
from hpcimg.fetch.contract import Request
from hpcimg.tier.child import Channel, Child
from hpcimg.tier.keeper import Asker, Keeper, Rules
from hpcimg.tier.places import Trouble
from hpcimg.tier.records import Record
from hpcimg.worker import accounts

log = logging.getLogger(__name__)
_LEFT_ALONE_S = 60.0  # a tier that did not answer
_PART = 0.5  # of the time that is left, for the tier
_RELEASE_S = 2.0
_TELL_EVERY_S = 1.0


def start(config: Config, ref_id: str, job: str, asker: Asker) -> Child:
    """Start the process that answers for one reference, with the rights for it. Raises Trouble."""
    rules = Rules(
        config.site_path, config.site_lease_s, config.site_wait_s, config.tag_ttl_s,
        config.error_ttl_s, config.site_max_size, config.site_max_age_s,
    )  # fmt: skip
    account = _account(config.site_account, config.account) if os.geteuid() == 0 else None
    # Loaded here: the account may not be able to read the modules.
    from filelock import SoftFileLease  # noqa: F401

    def work(channel: Channel) -> None:
        Keeper(rules, ref_id, channel, job=job, asker=asker).run()

    return Child(work, uid_gid=account)


class Tier:
    """The site tier for one image that is wanted. The process begins with the first question.

    What the server `host` wishes, "" for none, counts for all who ask it with a `login`, or
    for all without.
    """

    def __init__(
        self,
        config: Config,
        cache: Cache,
        request: Request,
        *,
        host: str = "",
        login: bool = False,
    ) -> None:
        self._config = config
        self._layout = cache.layout
        self._request = request
        self.uri = request.reference.uri
        # Nodes may make different formats of the same layers.
        name = f"{request.reference.address} {cache.image_format}"
        self._job = f"{request.together}.{'all' if request.owner is None else request.owner}"
        self._id = hashlib.sha256(name.encode()).hexdigest()
        answers = "login" if login else "all"
        of_host = hashlib.sha256(host.encode()).hexdigest()
        self._asker = Asker(f"{self._id}-{answers}", f"host-{of_host}-{answers}" if host else "")
        self._child: Child | None = None
        self._told = 0.0

    def close(self) -> None:
        """End the process, and give back what it holds."""
        if self._child and not self._child.gone:
            with suppress(Trouble):
                late = time.monotonic() + _RELEASE_S
                self._child.ask(do="release", patience_s=_RELEASE_S, until=late)
            self._child.end()

    def ask(self, what: str, **question: Any) -> dict[str, Any]:
        """Ask the process. Raises Trouble where it takes more than half of the time left."""
        if self._child is None:
            self._child = start(self._config, self._id, self._job, self._asker)
        patience_s = self._config.connect_timeout_s
        if what in ("copy", "stock", "agree", "trim"):
            patience_s = self._config.stall_timeout_s
        until = time.monotonic() + self.time_s()
        return self._child.ask(do=what, patience_s=patience_s, until=until, **question)

    def put(self, what: str, staged: Staged, **more: Any) -> dict[str, Any]:
        """Ask with an image of this node's cache. Raises Trouble."""
        try:
            file = os.open(staged.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise Trouble(f"{staged.path}: {error.strerror}") from None
        try:
            return self.ask(what, file=file, record=self.record(staged)._asdict(), **more)
        finally:
            os.close(file)

    def time_s(self) -> float:
        """Return for how long something may take now."""
        return max(0.0, self._request.deadline - time.monotonic()) * _PART

    def live(self, at: str) -> None:
        """Let the process know that we still are at it, and how far, at most once a second."""
        if self._child and time.monotonic() > self._told + _TELL_EVERY_S:
            self._told = time.monotonic()
            self._child.tell(do="live", at=at)

    def record(self, staged: Staged) -> Record:
        """Return what the tier is to know of an image of this node's cache."""
        entry, now = staged.entry, time.time()
        pinned = self._request.reference.pinned
        resolved = now if pinned else min(now, staged.fresh_until - self._config.tag_ttl_s)
        key = entry.key.removeprefix(owned("", entry.owner))
        return Record(
            self.uri, key, entry.extension, entry.sha256, entry.size_bytes, entry.source,
            staged.validator, resolved, pinned,
        )  # fmt: skip

    def event(self, name: str, **fields: object) -> None:
        """Count something among the node's events."""
        events.record(self._layout.events, name, job=self._request.job, **fields)

    def passed_over(self, why: str, *, unfinished: bool = False) -> None:
        """Say that the tier could not be used; leave one that did not answer alone for a while."""
        does = "is not stored there" if unfinished else "goes to the origin"
        log.warning("the site tier is bypassed, and %s %s: %s", self.uri, does, why)
        self.event("site_failed", message=why)
        if self._child and self._child.gone:
            with suppress(OSError):
                atomic.write_file(_down(self._layout.state), why)

    def left_alone(self) -> bool:
        try:
            age_s = time.time() - os.stat(_down(self._layout.state)).st_mtime
        except FileNotFoundError:
            return False
        return 0 <= age_s < _LEFT_ALONE_S


def _down(state: str) -> str:
    return f"{state}/site-down"


def _account(name: str, fetches: str) -> tuple[int, int] | None:
    """Return who writes in the tier, None for root. Raises Trouble."""
    if not name:
        return None
    try:
        account, worker = accounts.unprivileged(name), accounts.unprivileged(fetches)
    except ConfigError as error:
        raise Trouble(error.brief) from None
    assert account
    assert worker
    if account.uid == worker.uid:
        raise Trouble(
            f"[site] account is {name}, which also fetches: what it runs could change all images"
        )
    return account.uid, account.gid
