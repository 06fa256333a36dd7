"""Bringing an image here before there is a job for it: the first to go while none has used it."""

from __future__ import annotations

from typing import NamedTuple

from hpcimg import stage
from hpcimg.cache import store
from hpcimg.cache.ensure import Staged
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.fetch.contract import Request


class Brought(NamedTuple):
    """An image that is here. `used` is its last use as this has left it, None where jobs have."""

    staged: Staged
    used: float | None


def bring(config: Config, cache: Cache, request: Request, *, anew: bool) -> Brought:
    """Bring an image that all may use onto this node, and into the site tier where there is one.

    The arguments are those of `hpcimg.stage.stage`. What only a user may read is not brought.
    Raises HpcimgError.
    """
    known = store.load_ref(cache.layout, store.ref_id(request.reference.address, None))
    unused = store.unused(cache.layout, known.key) if known else False
    staged = stage.stage(config, cache, request, anew=anew, for_all=True)
    idle = staged.how == "fetched" or (known and unused and known.key == staged.entry.key)
    return Brought(staged, store.last_used(cache.layout, staged.entry.key) if idle else None)


def leave(cache: Cache, brought: Brought) -> None:
    """Mark an image that no job has used as such, once no other has to be brought beside it."""
    key = brought.staged.entry.key
    if brought.used is not None and store.last_used(cache.layout, key) == brought.used:
        store.mark_unused(cache.layout, brought.staged.entry)
