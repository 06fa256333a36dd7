"""The site tier as a node uses it: questions to a child process, and what to do if they fail."""

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
from hpcimg.locks import Lease
from hpcimg.tier.child import Channel, Child
from hpcimg.tier.keeper import Asker, Keeper, Rules
from hpcimg.tier.places import Trouble
from hpcimg.tier.records import Record
from hpcimg.worker import accounts

log = logging.getLogger(__name__)
_LEFT_ALONE_S = 60.0  # how long a tier that did not answer is not asked again
_PART = 0.5  # of the remaining time; the rest is for the origin
_RELEASE_S = 2.0
_TELL_EVERY_S = 1.0


def start(config: Config, ref_id: str, job: str, asker: Asker) -> Child:
    """Start the process for one reference, as [site] account. Raises Trouble."""
    rules = Rules(
        config.site_path, config.site_lease_s, config.site_wait_s, config.tag_ttl_s,
        config.error_ttl_s, config.site_max_size, config.site_max_age_s,
    )  # fmt: skip
    account = _account(config.site_account, config.account) if os.geteuid() == 0 else None
    Lease.load()

    def work(channel: Channel) -> None:
        Keeper(rules, ref_id, channel, job=job, asker=asker).run()

    return Child(work, uid_gid=account)


class Tier:
    """The site tier, for one requested image. Its process starts with the first question.

    A Retry-After of the server `host`, "" for none, applies to all nodes that contact it with
    a `login`, or to all that do so without.
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
        # Nodes may convert the same layers to different formats.
        name = f"{request.reference.address} {cache.image_format}"
        self._job = f"{request.together}.{'all' if request.owner is None else request.owner}"
        self._id = hashlib.sha256(name.encode()).hexdigest()
        answers = "login" if login else "all"
        of_host = hashlib.sha256(host.encode()).hexdigest()
        self._asker = Asker(f"{self._id}-{answers}", f"host-{of_host}-{answers}" if host else "")
        self._child: Child | None = None
        self._told = 0.0

    def close(self) -> None:
        """Release the tier's lease, and end the process."""
        if self._child and not self._child.gone:
            with suppress(Trouble):
                late = time.monotonic() + _RELEASE_S
                self._child.ask(do="release", patience_s=_RELEASE_S, until=late)
            self._child.end()

    def ask(self, what: str, **question: Any) -> dict[str, Any]:
        """Ask the process. Raises Trouble, also if it takes more than half of the time left."""
        if self._child is None:
            self._child = start(self._config, self._id, self._job, self._asker)
        patience_s = self._config.connect_timeout_s
        if what in ("copy", "stock", "agree", "trim"):
            patience_s = self._config.stall_timeout_s
        until = time.monotonic() + self.time_s()
        return self._child.ask(do=what, patience_s=patience_s, until=until, **question)

    def put(self, what: str, staged: Staged, **more: Any) -> dict[str, Any]:
        """Send an image in this node's cache along with a question. Raises Trouble."""
        try:
            file = os.open(staged.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise Trouble(f"{staged.path}: {error.strerror}") from None
        try:
            return self.ask(what, file=file, record=self.record(staged)._asdict(), **more)
        finally:
            os.close(file)

    def time_s(self) -> float:
        """Return how long a question may take, in seconds."""
        return max(0.0, self._request.deadline - time.monotonic()) * _PART

    def live(self, at: str) -> None:
        """Report progress to the process, so that other nodes go on waiting; once a second."""
        if self._child and time.monotonic() > self._told + _TELL_EVERY_S:
            self._told = time.monotonic()
            self._child.tell(do="live", at=at)

    def record(self, staged: Staged) -> Record:
        """Return the tier's record of an image in this node's cache."""
        entry, now = staged.entry, time.time()
        pinned = self._request.reference.pinned
        resolved = now if pinned else min(now, staged.fresh_until - self._config.tag_ttl_s)
        key = entry.key.removeprefix(owned("", entry.owner))
        return Record(
            self.uri, key, entry.extension, entry.sha256, entry.size_bytes, entry.source,
            staged.validator, resolved, pinned,
        )  # fmt: skip

    def event(self, name: str, **fields: object) -> None:
        """Record an event of this node."""
        events.record(self._layout.events, name, job=self._request.job, **fields)

    def passed_over(self, why: str, *, unfinished: bool = False) -> None:
        """Log that the tier could not be used. One that did not answer is not asked for a while."""
        does = "is not stored there" if unfinished else "goes to the origin"
        log.warning("the site tier is bypassed, and %s %s: %s", self.uri, does, why)
        self.event("site_failed", message=why)
        if self._child and self._child.gone:
            with suppress(OSError):
                atomic.write_file(_down(self._layout.state), why)

    def left_alone(self) -> bool:
        """Tell whether the tier did not answer a short while ago."""
        try:
            age_s = time.time() - os.stat(_down(self._layout.state)).st_mtime
        except FileNotFoundError:
            return False
        return 0 <= age_s < _LEFT_ALONE_S


def _down(state: str) -> str:
    return f"{state}/site-down"


def _account(name: str, fetches: str) -> tuple[int, int] | None:
    """Return uid and gid of the tier's owner, None for root. Raises Trouble."""
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
            f"[site] account is {name}, which also fetches: a process of it could change all images"
        )
    return account.uid, account.gid
