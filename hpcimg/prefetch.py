"""Bringing an image here before there is a job for it: the first to go while none has used it."""

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
    """What came of bringing an image: `how` is as in `hpcimg.cache.ensure.Staged`, or "there".

    `entry` is the image in this node's cache, None where it is in the site tier alone. `used`
    is its last use as this has left it, None where jobs have used it.
    """

    how: str
    entry: Entry | None = None
    used: float | None = None


def bring(config: Config, cache: Cache, request: Request, *, anew: bool) -> Brought:
    """Bring an image that all users share into the site tier, or without one onto this node.

    It comes into the tier by way of this node. With `anew`, cached failures are ignored on a node
    without a tier. What only a user may read is not brought. Raises HpcimgError.
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
    """Mark an image that no job has used as such, once no other has to be brought beside it."""
    entry = brought.entry
    if entry and brought.used == store.last_used(cache.layout, entry.key):
        store.mark_unused(cache.layout, entry)
