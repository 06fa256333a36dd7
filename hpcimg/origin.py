"""The way to an image from its origin, with one account and one set of credentials."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from hpcimg import schemes
from hpcimg.cache import store, turns
from hpcimg.cache.failures import Memory
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.fetch.contract import Converting, Listener, Outcome, Request
from hpcimg.fetch.settings import Mirror, Settings
from hpcimg.reference import Reference
from hpcimg.site.services import Credentials, Service
from hpcimg.worker import accounts, monitor, protocol
from hpcimg.worker.accounts import Account, User
from hpcimg.worker.process import Sandbox

_TRIES = 8
_TRIES_WITH_A_CACHED_IMAGE = 2
_UNPACKED = 10  # times the whole cache: the maximum that an image may unpack to


class Origin(NamedTuple):
    """A `hpcimg.fetch.contract.Way` in which a worker fetches from the source.

    The worker runs as `account` (None: the current one), with the `site` credentials and, if
    `as_user`, those of the job's user. The image is private to the uid `owner`, shared if None. The
    last three are as in `hpcimg.fetch.settings.Settings`.
    """

    config: Config
    cache: Cache
    wanted: Reference
    service: Service
    deadline: float
    account: Account | None
    owner: int | None = None
    site: Credentials = "none"
    as_user: bool = False
    login_needed: bool = False
    login_next: bool = False
    wait_s: float = 0.0

    def memory(self, *, anew: bool) -> Memory:
        """Return the cached failures of this way; with `anew`, they are ignored."""
        # Checking a mounted file system costs no server anything.
        forgetful = anew or schemes.of(self.wanted.scheme).mounted
        return Memory(
            ttl_s=0.0 if forgetful else self.config.error_ttl_s,
            settings=self.config.fingerprint,
            # A user may be able to read what the site's account cannot, and vice versa.
            asker="user" if self.as_user else "site" if self.site == "all" else "",
        )

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        order = protocol.Fetch(self.wanted, self._settings(bool(validator)), validator)
        with self._turn(listener):
            return monitor.fetch(order, descriptor, listener, self._sandbox(self.account))

    @contextmanager
    def _turn(self, listener: Listener) -> Iterator[None]:
        """Wait until not too many fetches of this node ask the same server, but not for long."""
        if schemes.of(self.wanted.scheme).mounted:
            yield
            return
        patience_s = min(self.cache.patience_s, (self.deadline - time.monotonic()) / 2)
        with turns.turn(
            self.cache.layout,
            self.service.url or self.wanted.host,
            patience_s=patience_s,
            waiting=lambda: listener.progress("waiting", 0, None),
        ):
            yield

    @contextmanager
    def convert(
        self, descriptor: int, *, image_config: str, sizes: Sequence[int], progress: Converting
    ) -> Iterator[monitor.Conversion]:
        # Never as the user, whose processes could inspect this one and keep its files open.
        sandbox = self._sandbox(accounts.unprivileged(self.config.account))
        with store.work_directory(self.cache.layout, _uid(sandbox)) as directory:
            order = protocol.Convert(
                uri=self.wanted.uri,
                config=image_config,
                sizes=tuple(sizes),
                directory=directory,
                format=self.cache.image_format,
                compression=self.config.compression,
                max_unpacked_bytes=_UNPACKED * self.cache.limits.max_size,
            )
            with monitor.convert(order, descriptor, progress, sandbox) as conversion:
                yield conversion

    def verify(self, descriptor: int, *, source: str) -> None:
        sandbox = self._sandbox(accounts.unprivileged(self.config.account))
        with store.work_directory(self.cache.layout, _uid(sandbox)) as directory:
            order = protocol.Verify(
                uri=self.wanted.uri,
                how=self.config.verify,
                keyring=self.config.keyring,
                source=source,
                directory=directory,
            )
            monitor.verify(order, descriptor, sandbox)

    def _settings(self, cached: bool) -> Settings:
        said = settings(
            self.config,
            self.wanted,
            self.service,
            tries=_TRIES_WITH_A_CACHED_IMAGE if cached else _TRIES,
            site=self.site,
            as_user=self.as_user,
        )
        return said._replace(
            deadline=self.deadline,
            login_needed=self.login_needed,
            login_next=self.login_next,
            wait_s=self.wait_s,
        )

    def _sandbox(self, account: Account | None) -> Sandbox:
        return Sandbox(account, self.deadline, self.cache.image_bytes)


def settings(
    config: Config,
    wanted: Reference,
    service: Service,
    *,
    tries: int,
    site: Credentials,
    as_user: bool,
) -> Settings:
    """Return the site's settings for one fetch, without a deadline. Raises ConfigError."""
    places = service.places(site)
    return Settings(
        tries=tries,
        deadline=math.inf,
        connect_timeout_s=config.connect_timeout_s,
        stall_timeout_s=config.stall_timeout_s,
        insecure=places[-1].insecure,
        service=service.url,
        region=service.region,
        credentials=places[-1].credentials,
        as_user=as_user,
        places=places if schemes.of(wanted.scheme).in_registry else (),
        networks=config.networks,
        site_hosts=service.site_hosts,
        mirrors=_web_mirrors(config, wanted),
    )


def _web_mirrors(config: Config, wanted: Reference) -> tuple[Mirror, ...]:
    """Return the mirrors of web servers; none for an address with a query, which may be secret."""
    if schemes.of(wanted.scheme).in_registry or "?" in wanted.rest:
        return ()
    return tuple(Mirror(mirror.of, mirror.url) for mirror in config.mirrors.values())


def _uid(sandbox: Sandbox) -> int | None:
    return sandbox.account.uid if sandbox.account else None


def origins(
    config: Config, cache: Cache, request: Request, service: Service, *, user: User
) -> Iterator[Origin]:
    """Yield the ways for a job of `user`: the one whose image can be shared most widely first."""
    wanted, deadline, uid = request.reference, request.deadline, user.uid
    scheme = schemes.of(wanted.scheme)
    may_read_as_user = scheme.as_user
    if os.geteuid() != 0:  # the whole cache belongs to one user
        yield Origin(
            config, cache, wanted, service, deadline, None, site="all", as_user=may_read_as_user
        )
        return
    unprivileged = accounts.unprivileged(config.account)
    user_next = scheme.in_registry and may_read_as_user and uid != 0
    shared = Origin(config, cache, wanted, service, deadline, unprivileged, site="shared")
    yield shared._replace(login_next=user_next or (scheme.in_registry and service.private))
    if service.private:
        yield shared._replace(owner=uid, site="all", login_next=user_next)
    if may_read_as_user and uid != 0:
        # None of the site's credentials: the user can inspect processes of this uid.
        yield shared._replace(account=accounts.of_user(*user), owner=uid, site="none", as_user=True)
