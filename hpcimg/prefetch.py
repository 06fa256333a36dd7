"""Fetch an image before a job needs it. Until a job uses it, it is the first to be evicted."""

from __future__ import annotations

import os
from typing import NamedTuple

from hpcimg import schemes, stage
from hpcimg.cache import store
from hpcimg.cache.policy import Cache
from hpcimg.cache.store import Entry
from hpcimg.config.keys import Config
from hpcimg.fetch.contract import Request


class Brought(NamedTuple):
    """The result: `how` is as in `hpcimg.cache.ensure.Staged`, or "there".

    `entry` is the image in this node's cache, None if it is only in the site tier. `used` is the
    last use that was recorded for it, None if jobs have used it.
    """

    how: str
    entry: Entry | None = None
    used: float | None = None


def bring(config: Config, cache: Cache, request: Request, *, anew: bool) -> Brought:
    """Fetch a shared image into the site tier, or without a tier into this node's cache.

    It gets into the tier through this node's cache. `anew` ignores cached failures, on a node
    without a tier. Private images are not fetched. Raises HpcimgError.
    """
    layout = cache.layout
    ref_id = store.ref_id(request.reference.address, None)
    known = store.load_ref(layout, ref_id)
    unused = store.unused(layout, known.key) if known else False
    mounted = schemes.of(request.reference.scheme).mounted
    if config.site_path and not mounted and os.geteuid() == 0:
        from hpcimg.tier import bring as tier

        how = tier.bring(config, cache, request)
        if how == tier.THERE:
            return Brought(how)
    else:
        how = stage.stage(config, cache, request, anew=anew, for_all=True).how
    ref = store.load_ref(layout, ref_id)
    entry = store.load_entry(layout, ref.key) if ref else None
    if ref is None or entry is None:  # evicted again
        return Brought(how)
    idle = how == "fetched" or (unused and known and known.key == ref.key)
    return Brought(how, entry, store.last_used(layout, ref.key) if idle else None)


def leave(cache: Cache, brought: Brought) -> None:
    """Mark an image as unused by jobs, after all the images of this run have been fetched."""
    entry = brought.entry
    if entry and brought.used == store.last_used(cache.layout, entry.key):
        store.mark_unused(cache.layout, entry)
