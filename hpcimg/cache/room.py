"""Disk space for one image: checked in advance, made as its bytes arrive.

A size announced by a server evicts nothing. It is only checked that this much room could be made;
unused images are evicted as bytes arrive, each time as much again ahead.
"""

from __future__ import annotations

from hpcimg.cache import evict
from hpcimg.cache.inflight import Inflight
from hpcimg.cache.policy import Cache
from hpcimg.fetch.contract import Request
from hpcimg.locks import Lock

FIRST_BYTES = 1 << 20  # arrive before any room is made
_AHEAD_BYTES = 64 << 20


class Room:
    """The room for one image. Do not hold the lock "room"; each step takes it."""

    def __init__(self, cache: Cache, inflight: Inflight, request: Request, *, lock: Lock) -> None:
        self._cache = cache
        self._inflight = inflight
        self._request = request
        self._lock = lock
        self._reserved = 0  # room was made for this many bytes

    def look(self, size_bytes: int) -> None:
        """Check that this much room could be made, and make enough to start.

        Raises TooLarge if it never could, NoRoom if it cannot now.
        """
        self._reserved = 0
        evict.check_room(
            self._cache.layout,
            self._cache.limits,
            size_bytes,
            what=self._request.reference.uri,
            owner=self._request.owner,
        )
        # Writing does not wait for room, and a disk that is really full has none at the start.
        first = min(size_bytes, _AHEAD_BYTES)
        if evict.free_on_disk(self._cache.layout) < first:
            self._make(first, written=0, coming=first)

    def kept(self, size_bytes: int) -> None:
        """Note that this many bytes are in the cache now, and no longer part of `written`."""
        self._reserved = max(self._reserved - size_bytes, 0)

    def reached(self, written: int, total: int) -> None:
        """Make room ahead of what is written, up to `total` bytes. Raises NoRoom."""
        ahead = self.coming(written)
        wanted = min(total - written, max(written, _AHEAD_BYTES))
        if written >= FIRST_BYTES and ahead < (min(wanted, _AHEAD_BYTES) + 1) // 2:
            self._make(max(wanted - ahead, 0), written=written, coming=wanted)

    def settle(self, written: int) -> None:
        """Make room for what is written, if that was not done yet. Raises NoRoom."""
        if written > self._reserved:
            self._make(0, written=written, coming=0)

    def coming(self, written: int) -> int:
        """Return how many bytes are still to be written into the room that was made."""
        return max(self._reserved - written, 0)

    def _make(self, more: int, *, written: int, coming: int) -> None:
        """Make room for more bytes, and announce it before others make theirs."""
        made = False
        while not made:  # others take turns in between
            with self._lock("room"):
                self._inflight.reserve(written, self.coming(written))
                made = evict.make_room(
                    self._cache.layout,
                    self._cache.limits,
                    more,
                    what=self._request.reference.uri,
                    deadline=self._request.deadline,
                    owner=self._request.owner,
                )
                if made:
                    self._reserved = written + coming
                    self._inflight.reserve(written, coming)
