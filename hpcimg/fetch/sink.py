"""Where a source puts an image: the file it was handed, with word to the parent.

A source calls `offer`, then `write` until all is there; when a transfer has to
begin again it calls `rewind`, and `offer` once more where something else comes now.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Mapping
from typing import Protocol

from hpcimg.errors import Damaged
from hpcimg.fetch.contract import Offer
from hpcimg.image import formats
from hpcimg.writeback import Writeback

_TELL_EVERY_S = 0.2
_CHUNK = 1 << 20


class DeclinedOffer(Exception):
    """The parent has the image already. Not an error; it ends the fetch."""


class Parent(Protocol):
    """Who started this process and has its files: hears of them, and answers.

    Its methods may be called from several threads. `layer` is a layer's number, None
    for the one file of an image.
    """

    def offer(self, offer: Offer) -> Mapping[int, int] | None:
        """Return files for the layers that are wanted, by number; None where nothing is."""

    def digest(self, layer: int | None) -> str:
        """Return the hexadecimal sha256 of what is in the file."""

    def moved(self, layer: int | None, done: int, total: int | None) -> None:
        """Hear that so many bytes are in the file."""

    def rewound(self, layer: int | None) -> None:
        """Hear that the file is empty again."""

    def retrying(self, why: str, wait_s: float) -> None:
        """Hear that an attempt failed, and when the next one begins."""


class Sink:
    """One image, or one layer, on its way into an open, empty file.

    `position` is the number of bytes that are good so far, `offered` what was offered last.
    A sink may be used by one thread while others use theirs.
    """

    def __init__(
        self, descriptor: int, parent: Parent, *, layer: int | None = None, total: int | None = None
    ) -> None:
        self._descriptor = descriptor
        self._parent = parent
        self._layer = layer
        self._total = total
        self._told = 0.0
        self.offered: Offer | None = None
        # Layers are not flushed to the disk at the end, and often gone before the kernel does it.
        self._writeback = Writeback(descriptor) if layer is None else None
        self.position = 0

    def offer(self, offer: Offer) -> None:
        """Say what is coming. Raises DeclinedOffer where it is not wanted."""
        if offer == self.offered:
            return
        self.offered = offer
        self._total = offer.size_bytes
        if self._parent.offer(offer) is None:
            raise DeclinedOffer

    def offer_layers(self, offer: Offer) -> dict[int, Sink]:
        """Offer an image in layers; return a sink for each layer that is wanted, by its number.

        Raises DeclinedOffer.
        """
        files = self._parent.offer(offer)
        if files is None:
            raise DeclinedOffer
        return {
            number: Sink(file, self._parent, layer=number, total=offer.layers[number].size_bytes)
            for number, file in files.items()
        }

    def write(self, data: bytes | memoryview) -> None:
        """Append to the file. Raises OSError."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, self.position)
            self.position += written
            view = view[written:]
        if self._writeback:
            self._writeback.reached(self.position)
        # What is longer than announced is said at once: who hears it ends this fetch, while the
        # limit of this process would speak of an image that is too large.
        too_long = self._total is not None and self.position > self._total
        if too_long or time.monotonic() - self._told > _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Let the parent know how far it is."""
        self._told = time.monotonic()
        self._parent.moved(self._layer, self.position, self._total)

    def check(self, what: str) -> None:
        """Raise Damaged, NotAnImage and their kin where this is not what was offered.

        For what may be had elsewhere: the parent looks at all that it gets.
        """
        known = self.offered.sha256 if self.offered else ""
        if not known:
            formats.identify(self._descriptor, what)
        elif (found := self.sha256()) != known:
            raise Damaged(f"{what} is not what was announced", why=f"its sha256 is {found}")

    def md5(self) -> str:
        """Return the digest of what was written as `md5:<base64>`, where a source has no other."""
        digest = hashlib.md5(usedforsecurity=False)
        offset = 0
        while data := os.pread(self._descriptor, _CHUNK, offset):
            digest.update(data)
            offset += len(data)
        return f"md5:{base64.b64encode(digest.digest()).decode()}"

    def sha256(self) -> str:
        """Return the digest of what was written, in hexadecimal.

        The parent reads it: for a source that tries elsewhere what is not right.
        """
        return self._parent.digest(self._layer)

    def rewind(self) -> None:
        """Begin again with an empty file."""
        os.ftruncate(self._descriptor, 0)
        self.position = 0
        self._parent.rewound(self._layer)

    def retry(self, why: str, wait_s: float) -> None:
        """Say that an attempt failed and when the next one begins."""
        self._parent.retrying(why, wait_s)
