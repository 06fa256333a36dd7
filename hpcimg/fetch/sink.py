"""Where a source puts an image: the file it was handed, with word to the parent.

A source calls `offer`, then `write` until all is there; when a transfer has to
begin again it calls `rewind`, and `offer` once more where something else comes now.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from hpcimg.fetch.contract import Offer

_TELL_EVERY_S = 0.2
_CHUNK = 1 << 20


class DeclinedOffer(Exception):
    """The parent has the image already. Not an error; it ends the fetch."""


class Sink:
    """One image on its way into an open, empty file.

    `say` tells the parent something; `answer` waits for its answer to a question:
    to an offer None for no, or the files for its layers by their number, and to
    "sha256" a digest. `position` is the number of bytes that are good so far. A
    sink may be used by one thread while others use theirs.
    """

    def __init__(
        self,
        descriptor: int,
        say: Callable[..., None],
        answer: Callable[[], Any],
        *,
        layer: int | None = None,
        total: int | None = None,
        asking: threading.Lock | None = None,
    ) -> None:
        """Take a file; `asking` is the lock of those who wait for answers of the same parent."""
        self._descriptor = descriptor
        self._say = say
        self._answer = answer
        self._layer = layer
        self._told = 0.0
        self._total = total
        self._asking = asking or threading.Lock()
        self._offered: Offer | None = None
        self.position = 0

    def offer(self, offer: Offer) -> None:
        """Say what is coming. Raises DeclinedOffer where it is not wanted."""
        if offer == self._offered:
            return
        self._offered = offer
        self._total = offer.size_bytes
        if self._ask("offer", **offer._asdict()) is None:
            raise DeclinedOffer

    def offer_layers(self, offer: Offer) -> dict[int, Sink]:
        """Offer an image in layers; return a sink for each layer that is wanted, by its number.

        Raises DeclinedOffer.
        """
        files: Mapping[int, int] | None = self._ask("offer", **offer._asdict())
        if files is None:
            raise DeclinedOffer
        return {
            number: Sink(
                file,
                self._say,
                self._answer,
                layer=number,
                total=offer.layers[number].size_bytes,
                asking=self._asking,
            )
            for number, file in files.items()
        }

    def write(self, data: bytes | memoryview) -> None:
        """Append to the file. Raises OSError."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, self.position)
            self.position += written
            view = view[written:]
        # What is longer than announced is said at once: who hears it ends this fetch, while the
        # limit of this process would speak of an image that is too large.
        too_long = self._total is not None and self.position > self._total
        if too_long or time.monotonic() - self._told > _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Let the parent know how far it is."""
        self._told = time.monotonic()
        self._say("progress", layer=self._layer, bytes=self.position, total=self._total)

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

        It is the parent's, which has followed: nothing is read a second time.
        """
        return str(self._ask("sha256", layer=self._layer))

    def rewind(self) -> None:
        """Begin again with an empty file."""
        os.ftruncate(self._descriptor, 0)
        self.position = 0
        self._say("rewind", layer=self._layer)

    def retry(self, why: str, wait_s: float) -> None:
        """Say that an attempt failed and when the next one begins."""
        self._say("retry", why=why, wait_s=wait_s)

    def _ask(self, what: str, **fields: object) -> Any:
        with self._asking:  # answers do not say to whom
            self._say(what, **fields)
            return self._answer()
