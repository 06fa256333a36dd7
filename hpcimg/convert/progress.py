"""Progress reports of a conversion."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpcimg.convert.layers import Layer
from hpcimg.convert.receiver import Receiver

# Bytes done, bytes in total, bytes on the disk in addition to the image's.
Tell = Callable[[int, int, int], None]
_TELL_EVERY_S = 0.25


class Progress:
    """Reports how much of the layers was read: never decreasing, and not too often.

    If packing is `apart`, after the reading, it counts for as much again.
    """

    def __init__(self, tell: Tell, layers: list[Layer], *, apart: bool) -> None:
        self._tell = tell
        self._sizes = [layer.size_bytes for layer in layers]
        self._total = sum(self._sizes) * (2 if apart else 1)
        self._done = 0
        self._disk_bytes = 0
        self._told = -1, 0
        self._next = 0.0

    def read(self, receiver: Receiver, number: int, size_bytes: int) -> None:
        """Note how much of a layer is read, those above it being done."""
        self._disk_bytes = receiver.disk_bytes
        self._say(sum(self._sizes[number + 1 :]) + size_bytes)

    def packed(self, size_bytes: int) -> None:
        """Note the size of the image, which ends up about as large as the layers."""
        layers = sum(self._sizes)
        self._say(layers + min(size_bytes, layers))

    def end(self) -> None:
        """Report that all is done."""
        self._next = 0
        self._say(self._total)

    def _say(self, done: int) -> None:
        # Reading a layer again is no progress, but may write to the disk.
        self._done = max(self._done, done)
        known, now = (self._done, self._disk_bytes), time.monotonic()
        if now >= self._next and known != self._told:
            self._told, self._next = known, now + _TELL_EVERY_S
            self._tell(self._done, self._total, self._disk_bytes)
