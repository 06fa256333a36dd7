"""What the cache, a fetch and a conversion say to each other.

The cache knows no source and a source knows no cache: `hpcimg.stage` hands the
cache functions of the types `Fetch` and `Convert`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Blob(NamedTuple):
    """One layer of an image, by the hexadecimal sha256 of its bytes."""

    sha256: str
    size_bytes: int


class Offer(NamedTuple):
    """What the source is about to send, said before the first byte of it.

    `validator` is opaque; the cache hands it back at the next look. `sha256` is
    the hexadecimal digest of the file, where the source knows it beforehand.

    An image in layers, of which one file is to be made, is offered by the sha256
    of its `manifest`, the text of its OCI image `config`, and its `layers` from
    the lowest to the highest.
    """

    validator: str
    size_bytes: int | None = None
    sha256: str = ""
    manifest: str = ""
    config: str = ""
    layers: tuple[Blob, ...] = ()


class Unchanged(NamedTuple):
    """The reference still stands for what the given validator was about."""


class Declined(NamedTuple):
    """The offer was not taken up."""


class Fetched(NamedTuple):
    """The file is in the descriptor: this many bytes, with this digest, as counted here."""

    size_bytes: int
    sha256: str


class Gathered(NamedTuple):
    """The layers that were wanted are in their files, as far as the process that fetches knows."""


Outcome = Unchanged | Declined | Fetched | Gathered

# A descriptor of an empty file for each of an offer's layers, None for one that is
# not needed; no list where the offer is declined.
Files = Sequence[int | None]
Offered = Callable[[Offer], Files | None]
Arrived = Callable[[int, Fetched], None]
Progress = Callable[[str, int, int | None], None]
# Bytes that are done, and all; the bytes that are on the disk besides the image's.
Converting = Callable[[int, int | None, int], None]


class Fetch(Protocol):
    """Bring what a reference stands for into an empty file, or its layers into theirs."""

    def __call__(
        self,
        descriptor: int,
        *,
        validator: str,
        offered: Offered,
        arrived: Arrived,
        progress: Progress,
    ) -> Outcome:
        """Return what came of it.

        `validator` is "" or what an earlier Offer held and the cache still has:
        then one request is to settle whether it changed, and a server that does
        not answer is not waited for long. `offered` is called before the
        content, and again before another one where a transfer has to begin anew;
        where it returns None the content is left. `progress` takes a
        phase, the bytes so far and the total where it is known. Both may raise,
        which ends the fetch. `arrived` is called at the end, also of a fetch
        that failed, for each layer's file that was handed out: nobody writes it
        any more. Raises HpcimgError.
        """


class Verify(Protocol):
    """Ask whether the site trusts an image."""

    def __call__(self, descriptor: int, *, source: str) -> None:
        """Return where it does. `source` is as in a cache's entry. Raises HpcimgError."""


class Convert(Protocol):
    """Make one image file of an image's layers."""

    def __call__(
        self, descriptor: int, *, image_config: str, layers: Sequence[int], progress: Converting
    ) -> Fetched:
        """Write it to the empty file `descriptor`; return what is in there.

        `image_config` and `layers` are as an Offer has them, the layers as
        descriptors. `progress` may raise. Raises HpcimgError.
        """
