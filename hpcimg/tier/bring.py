"""Bringing an image into the site tier before a job needs it."""

from __future__ import annotations

import os
from contextlib import closing

from hpcimg import schemes, stage
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.errors import ConfigError, NotAllowed, Unreachable
from hpcimg.fetch.contract import Request
from hpcimg.tier.client import Tier
from hpcimg.tier.places import Trouble

THERE = "there"


def bring(config: Config, cache: Cache, request: Request) -> str:
    """Bring an image that all may read into the site tier, by way of this node's cache.

    Return THERE where it was there already, else what came of staging it here, as
    `hpcimg.cache.ensure.Staged.how` has it. Raises HpcimgError: ConfigError where there is no
    tier, NotAllowed for what has no place in it, Unreachable where it could not be used.
    """
    uri = request.reference.uri
    if not config.site_path:
        raise ConfigError("there is no site tier", do="Set [site] path in hpcimg.conf.")
    if os.geteuid() != 0:
        raise NotAllowed("the site tier is root's", do="Be root.")
    if schemes.of(request.reference.scheme).mounted:
        raise NotAllowed(
            f"{uri} has no place in the site tier", why="it is on a mounted file system already"
        )
    try:
        with closing(Tier(config, cache, request)) as tier:
            if tier.ask("look")["is"] == THERE:
                return THERE
        staged = stage.stage(config, cache, request, for_all=True)
        if staged.entry.private:
            raise NotAllowed(
                f"{uri} has no place in the site tier", why="not all users may read it"
            )
        with closing(Tier(config, cache, request)) as tier:
            if tier.ask("look")["is"] != THERE:
                tier.put("stock", staged)
    except Trouble as trouble:
        raise Unreachable(f"the site tier cannot be used for {uri}", why=str(trouble)) from None
    return staged.how
