"""Staging one image: where references, policy, sources and the cache meet.

Nothing here knows Slurm; a job is a name to lease an image to, and a uid.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hpcimg import schemes
from hpcimg.cache import events, failures, hot, store
from hpcimg.cache.ensure import Staged, ensure
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.errors import Forbidden
from hpcimg.fetch.contract import (
    Arrived,
    Converting,
    Fetched,
    Files,
    Offer,
    Offered,
    Outcome,
    Progress,
)
from hpcimg.fetch.settings import Settings
from hpcimg.image.verify import refused
from hpcimg.reference import Reference
from hpcimg.site import services
from hpcimg.site.services import Credentials, Service
from hpcimg.worker import accounts, monitor
from hpcimg.worker.accounts import Account

log = logging.getLogger(__name__)
_TRIES = 8
_TRIES_WITH_A_CACHED_IMAGE = 2
_UNPACKED = 10  # times the whole cache: no image unpacks to more


def stage(
    config: Config,
    cache: Cache,
    wanted: Reference,
    *,
    written: str,
    deadline: float,
    job: str = "",
    uid: int = 0,
    anew: bool = False,
    progress: Progress = lambda *_: None,
) -> Staged:
    """Bring the image that `wanted` names onto this node; return it when it is whole.

    `written` is the reference as the job has it, by which the next job finds it at once.
    `job` gets a lease on it ("" gets none). What the unprivileged account may
    read is shared by all, with the site's credentials only where the site says
    so; what only the user `uid` may read stays that user's.
    `deadline` is a time.monotonic() value. With `anew`, no remembered error is
    the answer. Raises HpcimgError.
    """
    began = time.monotonic()
    service = services.find(config, wanted)
    staged = _first_allowed(
        _ways(config, wanted, service, uid),
        functools.partial(
            _ensure, config, cache, wanted, service, job=job, anew=anew, deadline=deadline,
            progress=progress,
        ),
    )  # fmt: skip
    events.record(
        cache.layout.events,
        staged.how,
        took_s=round(time.monotonic() - began, 3),
        job=job,
        key=staged.entry.key,
        bytes=staged.entry.size_bytes,
    )
    with contextlib.suppress(OSError):  # the next job then takes the long way
        hot.remember(
            cache.layout,
            written,
            hot.Hit(staged.entry.key, staged.path, wanted.uri),
            owner=staged.entry.owner,
            fingerprint=config.fingerprint,
            fresh_until=staged.fresh_until,
        )
    return staged


class _Way(NamedTuple):
    """With whose rights and credentials to fetch, and whose the image is then (None: all's)."""

    account: Account | None
    owner: int | None = None
    site: Credentials = "none"
    as_user: bool = False


def _ways(config: Config, wanted: Reference, service: Service, uid: int) -> Iterator[_Way]:
    """Yield the ways to fetch, the one whose image the most may use first."""
    may_read_as_user = schemes.of(wanted.scheme).as_user
    if os.geteuid() != 0:  # all of the cache is one user's
        yield _Way(None, site="all", as_user=may_read_as_user)
        return
    unprivileged = accounts.unprivileged(config.account)
    yield _Way(unprivileged, site="shared")
    if service.private:
        yield _Way(unprivileged, owner=uid, site="all")
    if may_read_as_user and uid != 0:
        # It gets none of the site's: a process of the user's is the user's to look into.
        yield _Way(accounts.of_user(uid), owner=uid, as_user=True)


def _first_allowed(ways: Iterator[_Way], bring: Callable[[_Way], Staged]) -> Staged:
    """Go the first way that is not Forbidden."""
    way = next(ways)
    while True:
        try:
            return bring(way)
        except Forbidden as error:
            other = next(ways, None)
            if other is None:
                raise
            log.info("%s; trying with more credentials", error.brief)
            way = other


def _ensure(
    config: Config,
    cache: Cache,
    wanted: Reference,
    service: Service,
    way: _Way,
    *,
    job: str,
    anew: bool,
    deadline: float,
    progress: Progress,
) -> Staged:
    memory = failures.Memory(
        # A look at a mounted file system costs no server anything.
        ttl_s=0.0 if anew or schemes.of(wanted.scheme).mounted else config.error_ttl_s,
        settings=config.fingerprint,
        # A user may read what the site's account may not, and the other way round.
        asker="user" if way.as_user else "site" if way.site == "all" else "",
    )

    def fetch(
        descriptor: int,
        *,
        validator: str,
        offered: Offered,
        arrived: Arrived,
        progress: Progress,
    ) -> Outcome:
        def wanted_offer(offer: Offer) -> Files | None:
            if offer.layers and config.verify == "sif":
                raise refused(wanted.uri, "an image in layers has no signature of SIF")
            return offered(offer)

        places = service.places(way.site)
        settings = Settings(
            tries=_TRIES_WITH_A_CACHED_IMAGE if validator else _TRIES,
            deadline=deadline,
            connect_timeout_s=config.connect_timeout_s,
            stall_timeout_s=config.stall_timeout_s,
            insecure=places[-1].insecure,
            service=service.url,
            region=service.region,
            credentials=places[-1].credentials,
            as_user=way.as_user,
            places=places if schemes.of(wanted.scheme).in_registry else (),
            networks=config.networks,
            site_hosts=service.site_hosts,
        )
        return monitor.fetch(
            wanted,
            descriptor,
            account=way.account,
            settings=settings,
            deadline=deadline,
            image_bytes=_image_bytes(cache),
            validator=validator,
            offered=wanted_offer,
            arrived=arrived,
            progress=progress,
        )

    def convert(
        descriptor: int, *, image_config: str, layers: Sequence[int], progress: Converting
    ) -> Fetched:
        with store.work_directory(
            cache.layout, way.account.uid if way.account else None
        ) as directory:
            return monitor.convert(
                wanted.uri,
                descriptor,
                account=way.account,
                settings={
                    "config": image_config,
                    "directory": directory,
                    "format": cache.image_format,
                    "compression": config.compression,
                    "max_unpacked_bytes": _UNPACKED * cache.limits.max_size,
                },
                deadline=deadline,
                image_bytes=_image_bytes(cache),
                layers=layers,
                progress=progress,
            )

    def verify(descriptor: int, *, source: str) -> None:
        account = accounts.unprivileged(config.account)
        with store.work_directory(cache.layout, account.uid if account else None) as directory:
            monitor.verify(
                wanted.uri,
                descriptor,
                account=account,
                settings={
                    "how": config.verify, "keyring": config.keyring, "source": source,
                    "directory": directory,
                },
                deadline=deadline,
                image_bytes=_image_bytes(cache),
            )  # fmt: skip

    return ensure(
        cache,
        wanted,
        job=job,
        owner=way.owner,
        deadline=deadline,
        fetch=fetch,
        convert=convert,
        progress=progress,
        memory=memory,
        verify=verify if cache.verified else None,
    )


def _image_bytes(cache: Cache) -> int:
    """Return how large an image may be, as the kernel is told as well."""
    most = cache.limits.max_size
    return min(most, cache.max_image_size or most)
