"""What the cache and a way to an image say to each other.

The cache knows no source and a source knows no cache: `hpcimg.stage` hands the
cache an object of the type `Way`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from hpcimg.reference import Reference

# The kernel hands so many open files from one process to another at once; Docker makes up to 127.
LAYERS_MAX = 250


class Blob(NamedTuple):
    """One layer of an image, by the hexadecimal sha256 of its bytes."""

    sha256: str
    size_bytes: int


# Where the bytes of an image came from, as events and metrics have it.
ORIGIN, MIRROR, SITE, PEERS = VIA = ("origin", "mirror", "site", "peers")


class Offer(NamedTuple):
    """What the source is about to send, said before the first byte of it.

    `validator` is opaque; the cache hands it back at the next look. `sha256` is
    the hexadecimal digest of the file, where the source knows it beforehand.

    An image in layers, of which one file is to be made, is offered by the text of
    its OCI image `config` and its `layers` from the lowest to the highest, at most
    LAYERS_MAX. `manifests` are the texts that lead to what is offered, from the one
    that the reference named: indexes, and at last the manifest of the image; () where
    the source has none. All texts are those of `text_of`. `via` is ORIGIN or MIRROR.
    """

    validator: str
    size_bytes: int | None = None
    sha256: str = ""
    config: str = ""
    layers: tuple[Blob, ...] = ()
    manifests: tuple[str, ...] = ()
    via: str = ORIGIN


class Whole(NamedTuple):
    """A finished image of another node's, about to be sent: what that node's cache knows of it.

    `key` and `source` are as in a cache's entry, and believed; only `sha256` and `size_bytes`
    are compared with what arrives. So who says this is root, or has it from root: no process
    without privileges can.
    """

    validator: str
    key: str
    sha256: str
    size_bytes: int
    source: str
    via: str


def text_of(data: bytes) -> str:
    """Return bytes as a text that `bytes_of` makes the same bytes of, whatever they are."""
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """Return the bytes that a text stands for. Raises ValueError where there are none."""
    return text.encode("utf-8", "surrogateescape")


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
# A phase, the bytes so far, and the total where it is known.
Progress = Callable[[str, int, int | None], None]
# Bytes that are done, and all; the bytes that are on the disk besides the image's.
Converting = Callable[[int, int | None, int], None]


class Request(NamedTuple):
    """One image that is requested on this node.

    `job` gets a lease on it ("" gets none). `owner` is the uid that the image is private to,
    None for a shared one. `deadline` is a time.monotonic() value for the whole request.
    `progress` is called as the fetch advances. `text` is the reference as it was written.
    `nodes` are the names of all nodes of the job, `node` that of this one among them; () and ""
    where that is not known. `together` names the job among those of all clusters where it has
    several nodes, which are to run one image. `agreed` is the key of that image, without its
    owner, and then no other will do. Both are "" for none.
    The job `came` at that time.monotonic() value, if it has waited before. `goes_on` is called
    whenever it is worth waiting for.
    """

    reference: Reference
    deadline: float
    job: str = ""
    owner: int | None = None
    progress: Progress = lambda *_: None
    text: str = ""
    nodes: tuple[str, ...] = ()
    node: str = ""
    together: str = ""
    agreed: str = ""
    came: float | None = None
    goes_on: Callable[[], None] = lambda: None


class Listener(Protocol):
    """Hears of one fetch. What it raises ends the fetch."""

    def offered(self, offer: Offer | Whole) -> Files | None:
        """Return where the layers go, () for one file, None to decline the offer.

        Called before the content, and again before another one where a transfer
        has to begin anew.
        """

    def arrived(self, number: int, fetched: Fetched) -> None:
        """Take a layer. Nobody writes its file any more, and its descriptor can only read.

        Called at the end, also of a fetch that failed, for each layer's file that
        was handed out and is as long as the offer says.
        """

    def progress(self, phase: str, done: int, total: int | None) -> None:
        """Take note of how far the fetch is."""


class Way(Protocol):
    """One way to bring an image: from its source, or from whatever is in front of it."""

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        """Bring the image into an empty file, or its layers into theirs; return what came of it.

        `validator` is "" or what an earlier Offer held and the cache still has:
        then one request is to settle whether it changed, and a server that does
        not answer is not waited for long. Raises HpcimgError.
        """

    def convert(
        self, descriptor: int, *, image_config: str, layers: Sequence[int], progress: Converting
    ) -> Fetched:
        """Make one image file of layers, in the empty file `descriptor`; return what is in there.

        `image_config` and `layers` are as an Offer has them, the layers as
        descriptors. `progress` may raise. Raises HpcimgError.
        """

    def verify(self, descriptor: int, *, source: str) -> None:
        """Return where the site trusts the image. `source` is as in a cache's entry.

        Raises HpcimgError.
        """
