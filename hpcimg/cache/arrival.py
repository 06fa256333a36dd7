"""The arrival of one image in the cache: its offer, its room, its verification, its publication."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

from hpcimg.cache import evict, identity, store
from hpcimg.cache.blobs import Blobs
from hpcimg.cache.inflight import Inflight
from hpcimg.cache.paths import fetching, owned
from hpcimg.cache.policy import Cache, check_allowed
from hpcimg.cache.room import Room
from hpcimg.cache.store import Entry
from hpcimg.errors import Damaged, NoRoom, NotAllowed, Unreachable
from hpcimg.fetch.contract import (
    Blob,
    Conversion,
    Fetched,
    Files,
    Offer,
    Request,
    Way,
    Whole,
    bytes_of,
)
from hpcimg.image import formats
from hpcimg.locks import Lock

_SET_APART_BYTES = 64 << 20


class Arrival(ExitStack):
    """Follows one fetch, as a `hpcimg.fetch.contract.Listener`, and finishes the image.

    What is offered in layers is converted by `way` while they arrive. `lock` takes a lock of the
    cache by its name, including the one for fetching the image's key, which is held from the offer
    on. `locked` is the key whose own lock is held, from the moment when its image is there. At the
    end of the context no unfinished files are left.
    """

    def __init__(
        self,
        cache: Cache,
        inflight: Inflight,
        request: Request,
        way: Way,
        *,
        lock: Lock,
    ) -> None:
        super().__init__()
        self._cache = cache
        self._layout = cache.layout
        self._inflight = inflight
        self._reference = request.reference
        self._uri = request.reference.uri
        self._owner = request.owner
        self._agreed = request.agreed
        self._deadline = request.deadline
        self._tell = request.progress
        self._way = way
        self._lock = lock
        self._blobs: Blobs | None = None
        self._conversion: Conversion | None = None
        self._output = "", -1  # its file
        self._handed_over: set[int] = set()  # layers
        self._made_bytes = 0  # by it, on the disk
        self._makes_bytes = 0  # by it, in the end
        self._converted_size = 0  # an estimate
        self._source = ""  # the digest of its manifest
        self._free_before = 0  # bytes when the conversion began, had no layer been fetched
        self._no_room: NoRoom | None = None
        self._room = Room(cache, inflight, request, lock=lock)
        self.offer: Offer | Whole | None = None
        self.key = ""  # of the image, once it is known and we fetch it
        self.locked = ""
        self._offered = self.enter_context(ExitStack())  # resources held for the offer
        self._temp, self.descriptor = self.enter_context(store.unfinished(self._layout, "image"))
        if self._owner is not None:
            store.check_private(self._layout, self.descriptor)

    def offered(self, offer: Offer | Whole) -> Files | None:
        """Make room for the offer, or decline it if the cache has the image."""
        in_layers = offer.source if isinstance(offer, Whole) else offer.layers
        if in_layers and self._cache.signed_only:
            raise NotAllowed.unverified(self._uri, "an image in layers has no SIF signature")
        # Discard an earlier offer: its key, its layers, its room.
        self._offered.close()
        self.offer, self.key, self._blobs, self._conversion = offer, "", None, None
        self._handed_over = set()
        self._made_bytes = self._makes_bytes = 0
        self.locked = ""
        self._inflight.update("asking")
        if isinstance(offer, Whole):
            layers: tuple[Blob, ...] = ()
            key = identity.check_whole(offer, self._cache.image_format, self._reference)
            self._source = offer.source
        else:
            layers = offer.layers
            self._source = identity.check(offer, self._reference)
            key = identity.key_of(offer, self._cache.image_format)
        size = offer.size_bytes or sum(layer.size_bytes for layer in layers)
        self._check_size(size)
        if key:
            self._lock_fetching(owned(key, self._owner))
            if self._trusted():
                return None
        if not layers:
            self._room.look(size)
            return ()
        self._blobs = self._offered.enter_context(
            Blobs(
                self._layout,
                layers,
                uri=self._uri,
                owner=self._owner,
                lock=self._lock,
                deadline=self._deadline,
            )
        )
        missing = sum(blob.size_bytes for blob in self._blobs.missing())
        # The layers and the image made from them compress similarly.
        self._converted_size = size
        self._room.look(missing + size)
        return self._blobs.files()

    def arrived(self, number: int, fetched: Fetched) -> None:
        """Keep a fetched layer."""
        assert self._blobs
        try:
            self._room.settle(self._blobs.written() - self._blobs.kept_bytes + self._made_bytes)
        except NoRoom as error:
            self._no_room = error  # if the fetch failed, its own error matters more
            return
        before = self._blobs.kept_bytes
        self._blobs.arrived(number, fetched)
        self._room.kept(self._blobs.kept_bytes - before)
        written = self._blobs.written() - self._blobs.kept_bytes + self._made_bytes
        self._inflight.reserve(written, self._room.coming(written))

    def progress(self, phase: str, done: int, total: int | None) -> None:
        """Note a fetch's progress; raise if it cannot continue."""
        files = [self.descriptor] if self._blobs is None else self._blobs.unfinished()
        written = max(done, _on_disk(files, self._uri))
        if total is not None and written > total:
            raise Damaged(f"{self._uri} is longer than announced")
        if self._blobs is None:
            self._check_size(written)
        self._tell(phase, done, total)
        room = total
        if self._blobs:
            if conversion := self._go_on():
                self._made(conversion.follow())
            written += self._made_bytes - self._blobs.kept_bytes
            if room is not None:
                room += self._makes_bytes - self._blobs.kept_bytes
        self._count(phase, done, total, written=written, room=room)

    def check_arrived(self) -> None:
        """Raise TooLarge for a file, which may be unfinished, that the cache could never hold."""
        if self._blobs is None:
            self._check_size(_on_disk([self.descriptor], self._uri))

    def converting(self, done: int, total: int | None, beside: int) -> None:
        """Note a conversion's progress after the fetch; raise if it cannot continue."""
        self._made(beside)
        self._tell("converting", done, total)
        self._count("converting", done, total, written=self._made_bytes, room=self._makes_bytes)

    def convert(self) -> Entry:
        """Convert the layers into one file, and publish it."""
        assert self._blobs
        if self._no_room:
            raise self._no_room
        self._blobs.check()
        self._blobs.release()
        conversion = self._go_on()
        assert conversion
        self.converting(0, None, conversion.follow())
        fetched = conversion.finish()
        self._check_fits(fetched.size_bytes)
        return self._publish(fetched, *self._output, source=self._source)

    def finish(self, fetched: Fetched) -> Entry:
        """Compare the fetched image with its offer, and publish it."""
        assert self.offer
        promised = self.offer.size_bytes
        if promised is not None and fetched.size_bytes != promised:
            raise Damaged(
                f"{self._uri} is truncated",
                why=f"{fetched.size_bytes} bytes arrived of {promised}",
            )
        if self.offer.sha256 and self.offer.sha256 != fetched.sha256:
            raise Damaged(
                f"{self._uri} is not what was announced",
                why=f"its sha256 is {fetched.sha256}, expected {self.offer.sha256}",
            )
        self._check_fits(fetched.size_bytes)
        source = self.offer.source if isinstance(self.offer, Whole) else ""
        return self._publish(fetched, self._temp, self.descriptor, source=source)

    def _go_on(self) -> Conversion | None:
        """Pass the layers that have arrived to the conversion; start it with the highest one."""
        assert self._blobs
        assert isinstance(self.offer, Offer)
        layers = self._blobs.readable()
        if self._conversion is None:
            if len(self.offer.layers) - 1 not in layers:
                return None
            # Not the fetch's file, which the fetching process can write to.
            self._output = self._offered.enter_context(store.unfinished(self._layout, "image"))
            self._free_before = evict.free_on_disk(self._layout) + self._blobs.written()
            self._conversion = self._offered.enter_context(
                self._way.convert(
                    self._output[1],
                    # Decoded like in Go if it is not UTF-8.
                    image_config=bytes_of(self.offer.config).decode(errors="replace"),
                    sizes=[layer.size_bytes for layer in self.offer.layers],
                    progress=self.converting,
                )
            )
        for number in layers.keys() - self._handed_over:
            self._conversion.add(number, layers[number])
            self._handed_over.add(number)
        return self._conversion

    def _made(self, beside: int) -> None:
        """Determine how much a conversion has written; raise if it is too much.

        `beside` is the disk space that it claims to use in addition to the image, which was not
        foreseeable: it counts only as far as free space has decreased since the start.
        """
        assert self._blobs
        size = _on_disk([self._output[1]], self._uri)
        gone = 0
        if beside:
            gone = self._free_before - evict.free_on_disk(self._layout) - self._blobs.written()
        beside = max(0, min(beside, gone - size))
        self._check_size(size)
        self._made_bytes = size + beside
        self._makes_bytes = self._converted_size + beside

    def _count(
        self, phase: str, done: int, total: int | None, *, written: int, room: int | None
    ) -> None:
        """Record progress, and make room for what is written, up to `room` bytes if known."""
        if room is not None:
            self._room.reached(written, room)
        coming = self._room.coming(written)
        put_down = self._inflight.update(phase, done, total, written=written, coming=coming)
        if put_down and (room is None or self._conversion):
            self._room.settle(written)

    def _publish(self, fetched: Fetched, temp: str, descriptor: int, *, source: str) -> Entry:
        image = formats.identify(descriptor, self._uri)
        self._lock_fetching(self.key or owned(f"sha256-{fetched.sha256}", self._owner))
        entry = Entry(
            key=self.key,
            extension=image.extension,
            sha256=fetched.sha256,
            size_bytes=fetched.size_bytes,
            architecture=image.architecture,
            uris=(self._uri,),
            fetched=time.time(),
            owner=self._owner,
            source=source,
            verified=self._cache.verified,
        )
        # Another process may have it, if the digest was not known before, or not waited for.
        if known := self._trusted():
            return known
        if self._cache.verified:
            self._way.verify(descriptor, source=source)
            if known := self._trusted():
                return known
        self._offered.enter_context(self._lock(self.key))
        self.locked = self.key
        store.publish(self._layout, entry, temp, descriptor)
        return entry

    def _trusted(self) -> Entry | None:
        """Return the image of our key if it exists; its lock is held from then on."""
        with ExitStack() as stack:
            stack.enter_context(self._lock(self.key))
            known = store.load_entry(self._layout, self.key)
            if known is None or not self._cache.trusts(known):
                return None
            self._offered.enter_context(stack.pop_all())
        self.locked = self.key
        return known

    def _lock_fetching(self, key: str) -> None:
        if self._agreed and key != owned(self._agreed, self._owner):
            raise Unreachable(
                f"{self._uri} is no longer the image that this job runs",
                why="another node of the job has an earlier version, which is gone",
            )
        if key != self.key:
            self._offered.enter_context(self._lock(fetching(key)))
            self.key = key

    def _check_size(self, size_bytes: int) -> None:
        """Raise TooLarge; cheap, since files without an announced size are checked as they grow."""
        check_allowed(self._cache.max_image_size, size_bytes, what=self._uri)
        evict.check_fits(self._cache.limits, size_bytes, what=self._uri, owner=self._owner)

    def _check_fits(self, size_bytes: int) -> None:
        """Check the size of the whole file: the last part may not have been reported."""
        self._check_size(size_bytes)
        self._inflight.update("checking", size_bytes, size_bytes)
        self._room.settle(size_bytes)


def _on_disk(files: Sequence[int], uri: str) -> int:
    """Return the total length of files. Raises Damaged if they take more space than that.

    A process can preallocate space beyond the end of its file, which no length shows and no kernel
    limit covers. File systems do that on their own, up to the size of the file.
    """
    seen = [os.fstat(file) for file in files]
    size = sum(each.st_size for each in seen)
    if sum(each.st_blocks * 512 for each in seen) > 2 * size + _SET_APART_BYTES:
        raise Damaged(f"{uri} takes more room on the disk than its size")
    return size
