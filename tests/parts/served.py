"""Images of a few bytes, and functions that fetch and convert them in this process.

For tests of the cache alone: what a worker does by hpcimg.worker.monitor is done here in place,
within the same contract (hpcimg.fetch.contract), and with a word to the test at each point on the
way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hpcimg.cache import directories, hot, identity, inflight, store
from hpcimg.cache.ensure import Staged, ensure
from hpcimg.cache.policy import Cache
from hpcimg.errors import Damaged
from hpcimg.fetch.contract import (
    Blob,
    Converting,
    Declined,
    Fetched,
    Gathered,
    Listener,
    Offer,
    Outcome,
    Request,
    Unchanged,
)
from hpcimg.reference import parse

# Where `at` is called: the points of a fetch, then those of a conversion.
FETCHING = ("asked", "offered", "half", "written", "arrived")
CONVERTING = ("converting", "half converted", "converted")
_SUPERBLOCK = struct.Struct("<4s24xHH8xQ48x")  # squashfs 4.0: magic, version, bytes used


def tiny_image(content: bytes) -> bytes:
    """Return a squashfs header and some bytes: enough of an image for the cache."""
    return _SUPERBLOCK.pack(b"hsqs", 4, 0, _SUPERBLOCK.size + len(content)) + content


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Content(NamedTuple):
    """What a reference stands for: the bytes of a file, or layers.

    `announced` is what its server says beforehand of a file: "digest", "size" or "nothing".
    """

    data: bytes = b""
    layers: tuple[bytes, ...] = ()
    announced: str = "size"

    @property
    def digest(self) -> str:
        """A digest of the content."""
        return sha256(b"".join(sha256(layer).encode() for layer in self.layers) or self.data)

    @property
    def manifest(self) -> str:
        """The text of the manifest, which names the config and the layers."""
        digests = [f"sha256:{sha256(part)}" for part in (b"{}", *self.layers)]
        config, *layers = [{"digest": digest} for digest in digests]
        return json.dumps({"config": config, "layers": layers})

    @property
    def offer(self) -> Offer:
        if self.layers:
            layers = tuple(Blob(sha256(layer), len(layer)) for layer in self.layers)
            return Offer(self.digest, config="{}", layers=layers, manifests=(self.manifest,))
        size = None if self.announced == "nothing" else len(self.data)
        return Offer(self.digest, size, self.digest if self.announced == "digest" else "")

    def key(self, image_format: str, owner: int | None = None) -> str:
        """Return the key that the cache must give it."""
        announced = self.offer._replace(sha256=sha256(self.data))
        name = identity.key_of(announced, image_format)
        return name if owner is None else f"u{owner}-{name}"

    def image(self, image_format: str) -> bytes:
        """Return the file that a job must get."""
        return converted(self.layers, image_format) if self.layers else self.data


def converted(layers: Sequence[bytes], image_format: str) -> bytes:
    """Return the result of converting layers."""
    return tiny_image(image_format.encode() + b"".join(layers))


class Server:
    """Serves one content; what it did is counted. `at` hears of each point and may raise.

    `sent` is put in the place of what was announced: of the file, or of the last layer.
    """

    def __init__(
        self,
        content: Content,
        *,
        at: Callable[[str], None] = lambda point: None,
        sent: bytes | None = None,
        image_format: str = "squashfs",
    ) -> None:
        self.content = content
        self.at = at
        self.sent = sent
        self.image_format = image_format
        self.lied = False  # the content differs from the announcement
        self.asked = 0
        self.transfers = 0
        self.conversions = 0

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        self.asked += 1
        self.at("asked")
        offer = self.content.offer
        if validator == offer.validator:
            return Unchanged()
        files = listener.offered(offer)
        if files is None:
            return Declined()
        self.transfers += 1
        parts = list(self.content.layers) or [self.content.data]
        if self.sent is not None:
            parts[-1] = self.sent
        wanted = dict(enumerate(files)) if offer.layers else {0: descriptor}
        total = offer.size_bytes
        if offer.layers:
            total = sum(offer.layers[n].size_bytes for n in wanted if wanted[n] is not None)
        try:
            self.at("offered")
            done = 0
            for number, file in sorted(wanted.items(), reverse=True):
                if file is not None:
                    self.lied |= parts[number] is self.sent
                    half = len(parts[number]) // 2
                    _write(file, parts[number][:half], 0)
                    listener.progress("fetching", done + half, total)
                    self.at("half")
                    _write(file, parts[number][half:], half)
                    done += len(parts[number])
                    if offer.layers:
                        self._arrive(listener, number, wanted)
                        listener.progress("fetching", done, total)
            self.at("written")
        finally:
            if offer.layers:
                for number in list(wanted):
                    self._arrive(listener, number, wanted)
        self.at("arrived")
        return Gathered() if offer.layers else _seen(descriptor)

    def _arrive(self, listener: Listener, number: int, wanted: dict[int, int | None]) -> None:
        """Hand over a layer if it is as long as it should be."""
        file, size = wanted[number], len(self.content.layers[number])
        if file is not None and (seen := _seen(file)).size_bytes == size:
            wanted[number] = None
            listener.arrived(number, seen)

    def verify(self, descriptor: int, *, source: str) -> None:
        raise AssertionError("no policy asks for it")

    @contextlib.contextmanager
    def convert(
        self, descriptor: int, *, image_config: str, sizes: Sequence[int], progress: Converting
    ) -> Iterator[Conversion]:
        self.conversions += 1
        assert image_config == self.content.offer.config
        assert list(sizes) == [len(layer) for layer in self.content.layers]
        self.conversion = Conversion(self, descriptor, progress)
        yield self.conversion
        self.conversion.ended = True

    def make(self, descriptor: int, layers: Sequence[int], progress: Converting) -> Fetched:
        """Make an image of layers, when they are all there."""
        self.at("converting")
        read = [_read(file) for file in layers]
        if tuple(read) != self.content.layers:
            raise Damaged("the layers are others than were announced")
        data = converted(read, self.image_format)
        half = len(data) // 2
        _write(descriptor, data[:half], 0)
        progress(1, 2, 0)
        self.at("half converted")
        _write(descriptor, data[half:], half)
        self.at("converted")
        return _seen(descriptor)


class Conversion:
    """A conversion that does all of its work at the end.

    `layers` are the files that it has; `ended` says whether it was ended without an error.
    """

    def __init__(self, server: Server, descriptor: int, progress: Converting) -> None:
        self.server = server
        self.descriptor = descriptor
        self.progress = progress
        self.layers: dict[int, int] = {}
        self.ended = False

    def add(self, number: int, layer: int) -> None:
        assert number not in self.layers
        self.layers[number] = layer

    def follow(self) -> int:
        return 0

    def finish(self) -> Fetched:
        layers = [self.layers[number] for number in sorted(self.layers)]
        return self.server.make(self.descriptor, layers, self.progress)


def _write(file: int, data: bytes, offset: int) -> None:
    assert os.pwrite(file, data, offset) == len(data)


def _read(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _seen(file: int) -> Fetched:
    data = _read(file)
    return Fetched(len(data), sha256(data))


def stage(
    cache: Cache, uri: str, server: Server, *, job: str = "", owner: int | None = None
) -> Staged:
    """Stage one image as Prolog does, including the hot record."""
    layout = cache.layout
    directories.prepare(layout)
    store.sweep(layout)
    inflight.sweep(layout)
    staged = ensure(cache, Request(parse(uri), time.monotonic() + 5, job, owner), server)
    with contextlib.suppress(OSError):
        hot.remember(
            layout,
            uri,
            hot.Hit(staged.entry.key, staged.path, uri),
            owner=owner,
            fingerprint=cache.image_format,
            fresh_until=staged.fresh_until,
        )
    return staged
