"""Staging one image: combines references, the ways to an image, and the cache.

Nothing here knows Slurm; a job is a name for the lease, and a uid.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

from hpcimg import look
from hpcimg.cache import events, hot
from hpcimg.cache.ensure import Staged, ensure
from hpcimg.cache.failures import Memory
from hpcimg.cache.paths import owned as owned_name
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.errors import ANOTHER_LOGIN, NO_LOGIN, Forbidden, HpcimgError, NotAnImage
from hpcimg.fetch.contract import Request, Way
from hpcimg.fronts import Asked, Front, Opener, in_front_of, spread
from hpcimg.origin import Origin, origins
from hpcimg.site import services
from hpcimg.worker.accounts import ROOT, User

log = logging.getLogger(__name__)
T = TypeVar("T")


def stage(
    config: Config,
    cache: Cache,
    request: Request,
    *,
    user: User = ROOT,
    anew: bool = False,
    image_format: str = "",
    for_all: bool = False,
) -> Staged:
    """Stage the requested image on this node; return it when it is complete.

    An image that the unprivileged account can read is shared by all users, one read with the
    site's credentials only where the site says so; an image that only `user` can read stays
    private to that user. With `anew`, cached failures are ignored. `image_format` is the format
    that the job needs, "" for the site's default. With `for_all`, only an image that all users
    share is staged. Raises HpcimgError.
    """
    began = time.monotonic()
    cache = cache.converting_to(image_format)
    wanted = request.reference
    service = services.find(config, wanted)

    def bring(origin: Origin) -> tuple[Staged, Origin]:
        owned = request._replace(owner=origin.owner)
        if origin.wait_s:  # the failure that this job itself has just met does not count
            owned = owned._replace(came=None)
        asked = Asked(config, cache, owned, origin)
        with in_front_of(asked, _openers(config)) as (way, fronts):
            return _ensured(cache, owned, way, fronts, origin.memory(anew=anew)), origin

    ways = origins(config, cache, request, service, user=user)
    if for_all:
        ways = iter([next(ways)._replace(login_next=False)])
    staged, origin = _first_allowed(ways, bring)
    if image_format not in ("", staged.entry.extension):
        raise NotAnImage(
            f"{wanted.uri} is not a {image_format} file",
            why=f"it is a {staged.entry.extension} file, and no image in layers that can be "
            f"made into one",
            do="Name an image in layers.",
        )
    events.record(
        cache.layout.events,
        staged.how,
        took_s=round(time.monotonic() - began, 3),
        job=request.job,
        key=staged.entry.key,
        bytes=staged.entry.size_bytes,
        scheme=wanted.scheme,
        **({"via": staged.via} if staged.via else {}),
    )
    if not staged.fresh_until:  # other jobs may get another image
        return staged
    with contextlib.suppress(OSError):  # the next job then takes the long way
        hot.remember(
            cache.layout,
            hot.name_of(request.text, image_format),
            hot.Hit(staged.entry.key, staged.path, wanted.uri),
            owner=staged.entry.owner,
            fingerprint=config.fingerprint,
            fresh_until=staged.fresh_until,
            mounted=_mounted(origin, staged.validator),
        )
    return staged


def _ensured(
    cache: Cache, request: Request, way: Way, fronts: Sequence[Front], memory: Memory
) -> Staged:
    """Stage the image by this way, so that all nodes of the job run the same one."""
    agreed = _first(front.agreed() for front in fronts) if request.together else ""
    ask = not agreed and any(front.decides() for front in fronts)
    staged = ensure(cache, request._replace(agreed=agreed, ask=ask), way, memory)
    for front in fronts:
        front.finish(staged)
    if request.together and not agreed:
        agreed = _first(front.settle(staged) for front in fronts)
        ours = staged.entry.key.removeprefix(owned_name("", request.owner))
        if agreed not in ("", ours):
            return ensure(cache, request._replace(agreed=agreed), way, memory)
    return staged


def _first(words: Iterable[str]) -> str:
    return next(filter(None, words), "")


def _openers(config: Config) -> Sequence[Opener]:
    """Return the fronts that this site has configured, the nearest to the origin first.

    Only those are imported.
    """
    found: list[Opener] = []
    if config.site_path:
        from hpcimg.tier.front import open_front

        found.append(open_front)
    else:
        found.append(_spread)
    if config.peers != "no":
        found.append(_peers)
    return found


def _spread(asked: Asked, behind: Way) -> AbstractContextManager[Front] | None:
    """Spread the nodes of a job that do not share the image among each other."""
    return None if _has_peers(asked) else spread(asked, behind)


def _peers(asked: Asked, behind: Way) -> AbstractContextManager[Front] | None:
    """Return the other nodes of the job as a front, None if they cannot share the image."""
    if not _has_peers(asked):
        return None

    from hpcimg.peers.swarm import Swarm

    return Swarm(asked, behind)


def _has_peers(asked: Asked) -> bool:
    request, config = asked.request, asked.config
    if config.peers == "no" or len(request.nodes) < max(2, config.peers_min_nodes):
        return False
    if request.node not in request.nodes or request.owner is not None:
        return False
    if request.reference.mounted_file or os.geteuid() != 0:
        return False
    return config.peers != "auto" or importlib.util.find_spec("libtorrent") is not None


def _mounted(origin: Origin, validator: str) -> hot.Mounted | None:
    path = origin.wanted.mounted_file
    rights = look.rights_of(*origin.account) if origin.account else ""
    return hot.Mounted(rights, path, validator) if path else None


def _first_allowed(ways: Iterator[Origin], bring: Callable[[Origin], T]) -> T:
    """Take the first way that is not refused.

    After Forbidden all remaining ways are tried; after another answer that a login may change, only
    those that have one. Last, wait for a registry that was too busy for the first requester.
    """
    way: Origin | None = next(ways)
    refused: HpcimgError | None = None
    patient: Origin | None = None
    while way:
        needed = refused is not None and not isinstance(refused, Forbidden)
        try:
            return bring(way._replace(login_needed=needed))
        except HpcimgError as error:
            if not isinstance(error, Forbidden) and error.login != ANOTHER_LOGIN:
                raise
            if error.login != NO_LOGIN:
                refused = error
                log.info("%s; trying with more credentials", error.brief)
                if way.login_next and error.retry_after_s and not patient:
                    wait_s = error.retry_after_s
                    patient = way._replace(login_next=False, wait_s=wait_s)
        way = next(ways, None)
    assert refused
    if patient and time.monotonic() + patient.wait_s < patient.deadline:
        return bring(patient)
    raise refused
