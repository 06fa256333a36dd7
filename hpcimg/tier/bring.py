"""Fetch an image into the site tier before a job needs it."""

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
    """Fetch a shared image into the site tier, through this node's cache.

    Returns THERE if the tier had it already, otherwise how it was staged on this node, as in
    `hpcimg.cache.ensure.Staged.how`. Raises HpcimgError: ConfigError if there is no tier,
    NotAllowed for an image that must not be put there, Unreachable if the tier cannot be used.
    """
    uri = request.reference.uri
    if not config.site_path:
        raise ConfigError("there is no site tier", do="Set [site] path in hpcimg.conf.")
    if os.geteuid() != 0:
        raise NotAllowed("only root can write to the site tier", do="Run this as root.")
    if schemes.of(request.reference.scheme).mounted:
        raise NotAllowed(
            f"{uri} is not put into the site tier", why="it is already on a mounted file system"
        )
    try:
        with closing(Tier(config, cache, request)) as tier:
            if tier.ask("look")["is"] == THERE:
                return THERE
        staged = stage.stage(config, cache, request, for_all=True)
        if staged.entry.private:
            raise NotAllowed(
                f"{uri} is not put into the site tier", why="not all users can read it"
            )
        with closing(Tier(config, cache, request)) as tier:
            if tier.ask("look")["is"] != THERE:
                tier.put("stock", staged)
    except Trouble as trouble:
        raise Unreachable(f"the site tier cannot be used for {uri}", why=str(trouble)) from None
    return staged.how
