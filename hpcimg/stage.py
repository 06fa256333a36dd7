"""Staging one image: where references, the ways to an image and the cache meet.

Nothing here knows Slurm; a job is a name to lease an image to, and a uid.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from hpcimg.cache import events, hot
from hpcimg.cache.ensure import Staged, ensure
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.errors import Forbidden
from hpcimg.fetch.contract import Request
from hpcimg.origin import Origin, origins
from hpcimg.site import services

log = logging.getLogger(__name__)


def stage(
    config: Config,
    cache: Cache,
    request: Request,
    *,
    text: str,
    uid: int = 0,
    gid: int | None = None,
    anew: bool = False,
) -> Staged:
    """Bring the requested image onto this node; return it when it is whole.

    `text` is the reference as it was written. What the unprivileged account may
    read is shared by all, with the site's credentials only where the site says
    so; what only the user `uid` may read stays that user's. `gid` is the group of a user
    whom the node does not know, where Slurm vouches for it. With `anew`, cached
    failures are ignored. Raises HpcimgError.
    """
    began = time.monotonic()
    wanted = request.reference
    service = services.find(config, wanted)

    def bring(origin: Origin) -> Staged:
        owned = request._replace(owner=origin.owner)
        return ensure(cache, owned, origin, origin.memory(anew=anew))

    staged = _first_allowed(
        origins(config, cache, wanted, service, deadline=request.deadline, uid=uid, gid=gid), bring
    )
    events.record(
        cache.layout.events,
        staged.how,
        took_s=round(time.monotonic() - began, 3),
        job=request.job,
        key=staged.entry.key,
        bytes=staged.entry.size_bytes,
    )
    with contextlib.suppress(OSError):  # the next job then takes the long way
        hot.remember(
            cache.layout,
            text,
            hot.Hit(staged.entry.key, staged.path, wanted.uri),
            owner=staged.entry.owner,
            fingerprint=config.fingerprint,
            fresh_until=staged.fresh_until,
        )
    return staged


def _first_allowed(ways: Iterator[Origin], bring: Callable[[Origin], Staged]) -> Staged:
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
