"""The interface between the cache and the ways to an image.

The cache knows no source and a source knows no cache: `hpcimg.stage` passes the cache an object of
type `Way`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from hpcimg.reference import Reference

# The kernel passes this many open files between processes at once; Docker makes up to 127 layers.
LAYERS_MAX = 250


class Blob(NamedTuple):
    """One layer of an image, identified by the hexadecimal sha256 of its bytes."""

    sha256: str
    size_bytes: int


# Where the bytes of an image came from, in events and metrics.
ORIGIN, MIRROR, SITE, PEERS = VIA = ("origin", "mirror", "site", "peers")


class Offer(NamedTuple):
    """What the source is about to send, stated before the first byte.

    `validator` is opaque; the cache passes it back the next time. `sha256` is the hexadecimal
    digest of the file, if the source knows it in advance.

    An image in layers, to be converted into one file, is offered by the text of its OCI image
    `config` and its `layers`, lowest first, at most LAYERS_MAX. `manifests` are the texts that lead
    to the offered image, starting with the one that the reference named: indexes, and last the
    manifest of the image; () if the source has none. All texts are those of `text_of`. `via` is
    ORIGIN or MIRROR.
    """

    validator: str
    size_bytes: int | None = None
    sha256: str = ""
    config: str = ""
    layers: tuple[Blob, ...] = ()
    manifests: tuple[str, ...] = ()
    via: str = ORIGIN


class Whole(NamedTuple):
    """A finished image that another node is about to send, as that node's cache describes it.

    `key` and `source` are as in a cache entry, and trusted; only `sha256` and `size_bytes` are
    compared with what arrives. So only root may make one, or somebody who has it from root: no
    unprivileged process can.
    """

    validator: str
    key: str
    sha256: str
    size_bytes: int
    source: str
    via: str


def text_of(data: bytes) -> str:
    """Return arbitrary bytes as a text from which `bytes_of` restores the same bytes."""
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """Return the bytes that a text stands for. Raises ValueError if there are none."""
    return text.encode("utf-8", "surrogateescape")


class Unchanged(NamedTuple):
    """The content that the given validator belongs to is still current."""


class Declined(NamedTuple):
    """The offer was declined."""


class Fetched(NamedTuple):
    """The descriptor contains the whole file, with this size and digest, both computed here."""

    size_bytes: int
    sha256: str


class Gathered(NamedTuple):
    """The wanted layers are in their files, according to the process that fetched them."""


Outcome = Unchanged | Declined | Fetched | Gathered

# A descriptor of an empty file for each layer of an offer, None for one that is not needed; no
# list if the offer is declined.
Files = Sequence[int | None]
# A phase, the bytes so far, and the total if it is known.
Progress = Callable[[str, int, int | None], None]
# Bytes done, bytes in total (None if unknown), bytes on the disk in addition to the image's.
Converting = Callable[[int, int | None, int], None]


class Request(NamedTuple):
    """One image that is requested on this node.

    `job` gets a lease on it ("" gets none). `owner` is the uid that the image is private to,
    None for a shared one. `deadline` is a time.monotonic() value for the whole request.
    `progress` is called as the fetch advances. `text` is the reference as it was written.
    `nodes` are the names of all nodes of the job, `node` is this one's; () and "" if unknown.
    `together` identifies a job of several nodes, which all have to run the same image, among those
    of all clusters. `agreed` is the key of that image, without its owner; then no other image is
    accepted. Both are "" for none. With `ask`, the way decides what the reference stands for, even
    if the cache has resolved it already. `came`, a time.monotonic() value, is when the job began
    to wait, if it has waited before. `goes_on` is called while there is progress worth waiting for.
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
    ask: bool = False
    came: float | None = None
    goes_on: Callable[[], None] = lambda: None


class Listener(Protocol):
    """Called back during one fetch. An exception from it ends the fetch."""

    def offered(self, offer: Offer | Whole) -> Files | None:
        """Return the files for the layers, () for a single file, None to decline the offer.

        Called before the content, and again before different content when a transfer has to start
        over.
        """

    def arrived(self, number: int, fetched: Fetched) -> None:
        """Take over a layer. Its file is no longer written, and its descriptor is read-only.

        Called once for each layer whose file was handed out and is as long as the offer says, while
        others still arrive, or at the end, even if the fetch failed.
        """

    def progress(self, phase: str, done: int, total: int | None) -> None:
        """Note the progress of the fetch."""


class Conversion(Protocol):
    """A conversion under way, which waits for the layers that it does not have yet."""

    def add(self, number: int, layer: int) -> None:
        """Add the file of a layer, verified, by its number in the Offer."""

    def follow(self) -> int:
        """Return the bytes that it claims to have on the disk in addition to the image.

        Call it repeatedly until `finish`. It does not wait. Raises HpcimgError if the conversion
        has failed.
        """

    def finish(self) -> Fetched:
        """Wait for the image; return its size and digest. Nobody can write to it any more.

        Call it once all layers were added. Raises HpcimgError.
        """


class Way(Protocol):
    """One way to get an image: from its source, or from something in front of it."""

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        """Fetch the image into an empty file, or its layers into theirs; return the outcome.

        `validator` is "" or the one of an earlier Offer whose content is still cached: then one
        request should settle whether it has changed, and a server that does not answer is given up
        on early. Raises HpcimgError.
        """

    def convert(
        self, descriptor: int, *, image_config: str, sizes: Sequence[int], progress: Converting
    ) -> AbstractContextManager[Conversion]:
        """Begin to convert layers into one image, in the empty file `descriptor`.

        It ends with the context. `image_config` is that of an Offer, `sizes` are those of its
        layers in bytes. `progress` is called by `finish`, and may raise. Raises HpcimgError.
        """

    def verify(self, descriptor: int, *, source: str) -> None:
        """Return if the site trusts the image. `source` is as in a cache entry.

        Raises HpcimgError.
        """
