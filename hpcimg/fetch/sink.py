"""Where a source writes an image: the file that it was given, with reports to the parent.

A source calls `offer`, then `write` until the file is complete; when a transfer has to start over
it calls `rewind`, and `offer` again if the content is different now.
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
    """The parent already has the image. Not an error; it ends the fetch."""


class Parent(Protocol):
    """The process that started this one and owns its files: it receives reports, and answers.

    Its methods may be called from several threads. `layer` is a layer's number, None for the single
    file of an image.
    """

    def offer(self, offer: Offer) -> Mapping[int, int] | None:
        """Return files for the wanted layers, by number; None if the offer is declined."""

    def digest(self, layer: int | None) -> str:
        """Return the hexadecimal sha256 of the file's content."""

    def moved(self, layer: int | None, done: int, total: int | None) -> None:
        """Report how many bytes are in the file."""

    def rewound(self, layer: int | None) -> None:
        """Report that the file is empty again."""

    def complete(self, layer: int) -> None:
        """Report that the file of a layer is complete, and closed in this process."""

    def retrying(self, why: str, wait_s: float) -> None:
        """Report that an attempt failed, and when the next one begins."""


class Sink:
    """Writes one image, or one layer, into an open, empty file.

    `position` is the number of good bytes so far, `offered` the last offer. A sink is used by one
    thread, while others use theirs.
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
        # Layers are not flushed at the end, and are often removed before the kernel writes them.
        self._writeback = Writeback(descriptor) if layer is None else None
        self.position = 0

    def offer(self, offer: Offer) -> None:
        """Announce the content. Raises DeclinedOffer if it is not wanted."""
        if offer == self.offered:
            return
        self.offered = offer
        self._total = offer.size_bytes
        if self._parent.offer(offer) is None:
            raise DeclinedOffer

    def offer_layers(self, offer: Offer) -> dict[int, Sink]:
        """Offer an image in layers; return a sink for each wanted layer, by its number.

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
        # Report at once if more arrives than was announced: the parent then ends this fetch, while
        # hitting this process's limit would look like an image that is too large.
        too_long = self._total is not None and self.position > self._total
        if too_long or time.monotonic() - self._told > _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Report the progress to the parent."""
        self._told = time.monotonic()
        self._parent.moved(self._layer, self.position, self._total)

    def complete(self) -> None:
        """Close the file of a layer and report that, so that the parent can use it.

        Call it when the layer will not be requested from another place.
        """
        assert self._layer is not None
        os.close(self._descriptor)
        self._parent.complete(self._layer)

    def check(self, what: str) -> None:
        """Raise Damaged, NotAnImage or similar if this is not what was offered.

        For content that another place may have; the parent checks everything anyway.
        """
        known = self.offered.sha256 if self.offered else ""
        if not known:
            formats.identify(self._descriptor, what)
        elif (found := self.sha256()) != known:
            raise Damaged(f"{what} is not what was announced", why=f"its sha256 is {found}")

    def md5(self) -> str:
        """Return `md5:<base64>` of what was written, for sources without another digest."""
        digest = hashlib.md5(usedforsecurity=False)
        offset = 0
        while data := os.pread(self._descriptor, _CHUNK, offset):
            digest.update(data)
            offset += len(data)
        return f"md5:{base64.b64encode(digest.digest()).decode()}"

    def sha256(self) -> str:
        """Return the hexadecimal sha256 of what was written, as computed by the parent.

        For sources that try another place if it is wrong.
        """
        return self._parent.digest(self._layer)

    def rewind(self) -> None:
        """Start over with an empty file."""
        os.ftruncate(self._descriptor, 0)
        self.position = 0
        self._parent.rewound(self._layer)

    def retry(self, why: str, wait_s: float) -> None:
        """Report that an attempt failed and when the next one begins."""
        self._parent.retrying(why, wait_s)
