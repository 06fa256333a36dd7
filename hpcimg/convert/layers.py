"""Decompress one layer: gzip, zstd or plain, recognized by its first bytes.

The bytes are hostile: only a few chunks are held in memory, and a layer that unpacks to far more
than any real one is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from hpcimg import programs
from hpcimg.decompression import ZSTD_MAGIC, gzip, zstd
from hpcimg.errors import HpcimgError, MissingTool, NotAnImage, TooLarge

_GZIP = b"\x1f\x8b"
_ZSTD_WINDOW = 29  # bits: 512 MiB, as containerd and podman accept; zstd's own default is 27
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # at 1; at 0 is 0x50 to 0x5f
_CHUNK = 1 << 20
# Compressions that no specification allows for layers, and some tools write.
_OTHERS = (
    (0, b"\xfd7zXZ\x00", "xz"),
    (4, b"1AY&SY", "bzip2"),
    (0, b"\x04\x22\x4d\x18", "lz4"),
    (0, b"PK\x03\x04", "zip"),
)
# Small, since zlib copies the remainder after each of many short gzip members.
_GZIP_CHUNK = 1 << 17
_GZIP_HEADER = 1 << 16  # hardly any is longer
_CHUNKS_AHEAD = 8
_RECORD = 20 * 512  # tar pads its last one with zeros
_DIGESTS = ("sha256", "sha384", "sha512")

Unpacked = Generator[bytes, None, None]


class Layer(NamedTuple):
    """One layer. `what` names it in errors.

    `file` returns the open file, and may wait until the layer has arrived. `diff_id` is the digest
    that the unpacked bytes must have, `most_bytes` their maximum number; "" and 0 for any.
    """

    file: Callable[[], int]
    size_bytes: int
    what: str
    diff_id: str = ""
    most_bytes: int = 0

    def damaged(self, why: str) -> HpcimgError:
        """Return the error for a layer that cannot be read to its end.

        Its digest is that in the manifest, so fetching it again would not help.
        """
        return NotAnImage(
            f"{self.what} is damaged", why=why, do="Build the image again, or use another one."
        )

    def refused(self, why: str) -> HpcimgError:
        """Return the error for a layer that is invalid, or not a layer at all."""
        return NotAnImage(
            f"{self.what} cannot be used", why=why, do="Build the image again, or use another one."
        )

    def check_size(self, size_bytes: int) -> None:
        """Raise TooLarge if the layer unpacks to more than `most_bytes`."""
        if self.most_bytes and size_bytes > self.most_bytes:
            raise TooLarge(
                f"{self.what} cannot be used",
                why=f"its {self.size_bytes} bytes unpack to more than {self.most_bytes}",
                do="Such an image is broken, or meant to fill disks; use another one.",
            )


class Reader:
    """The unpacked bytes of a layer, in order. Waits for the layer to arrive.

    `read`, `copy` and `skip_to` raise NotAnImage at a premature end, TooLarge for a layer that
    unpacks to too much, MissingTool. `progress` is called with the number of compressed bytes read.
    A `known` layer is not digested again.
    """

    def __init__(
        self, layer: Layer, progress: Callable[[int], None], *, known: bool = False
    ) -> None:
        self.layer = layer
        self._progress = progress
        self._source = _Source(layer, "" if known else layer.diff_id)
        self._chunks = self._source.chunks()
        self._chunk = b""
        self._at = 0  # in the chunk
        self._before = 0  # unpacked bytes before the chunk

    def close(self) -> None:
        """End the decompression."""
        self._chunks.close()

    @property
    def position(self) -> int:
        """The number of unpacked bytes read so far."""
        return self._before + self._at

    def read(self, size: int) -> bytes:
        """Return the next bytes, exactly that many."""
        end = self._at + size
        if end > len(self._chunk):
            return b"".join(self._pieces(size))
        data = self._chunk[self._at : end]
        self._at = end
        return data

    def copy(self, size: int) -> Iterable[bytes]:
        """Return the next `size` bytes, in pieces as they are unpacked."""
        if self._at + size <= len(self._chunk):
            return (self.read(size),)
        return self._pieces(size)

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size:
            if self._at == len(self._chunk) and not self._next():
                raise self.layer.damaged("it ends in the middle of a file")
            piece = self._chunk[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def skip_to(self, position: int, *, may_end: bool = False) -> None:
        """Skip to a position. If it has been passed already, the layer is damaged."""
        if position < self.position:
            raise self.layer.damaged("a file's header is invalid")
        while position > self._before + len(self._chunk):
            if not self._next():
                if may_end:
                    return
                raise self.layer.damaged("it ends in the middle of a file")
        self._at = position - self._before

    def at_end(self) -> bool:
        """Tell whether there is nothing more."""
        return self._at == len(self._chunk) and not self._next()

    def drain(self) -> None:
        """Read to the end, so that the checksums there are checked."""
        while self._next():
            pass

    def check_digest(self) -> None:
        """Raise NotAnImage if the digest of the layer, read to its end, is not `diff_id`.

        Some tools state the digest of the compressed bytes, which is as good. Some omit the zeros
        at the end of tar's last record, as skopeo and podman did in zstd:chunked.
        """
        found, expected = self._source.digest(), self._source.expected
        padded = self._source.digest(zeros=-self.position % _RECORD)
        if expected not in (found, padded) and self._source.packed_digest() != expected:
            raise self.layer.refused(
                f"its digest is {found}, and the image's configuration says {expected}"
            )

    def _next(self) -> bool:
        self._before += len(self._chunk)
        self._at = 0
        self._chunk = next(self._chunks, b"")
        self._progress(self._source.position)
        self.layer.check_size(self._before + len(self._chunk))
        return bool(self._chunk)


class _Source:
    """Decompresses a layer: `position` is the number of bytes read, `expected` its `diff_id`."""

    def __init__(self, layer: Layer, expected: str) -> None:
        self._layer = layer
        self._file = layer.file()
        self.position = 0
        self.expected = expected
        self._algorithm = expected.partition(":")[0]
        if expected and self._algorithm not in _DIGESTS:
            raise layer.refused(f"its digest is of an unsupported kind: {expected[:80]}")
        self._hash = hashlib.new(self._algorithm) if expected else None

    def chunks(self) -> Unpacked:
        """Return a generator of the unpacked bytes."""
        head = os.pread(self._file, 512, 0)
        for at, magic, name in _OTHERS:
            if head.startswith(magic, at):
                raise self._layer.refused(
                    f"it is compressed with {name}; layers must be plain, gzip or zstd"
                )
        if head.startswith(_GZIP):
            return _ahead(self._digested(self._gunzip()))
        if head.startswith(ZSTD_MAGIC) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
            if zstd is None:
                return self._digested(self._zstd_program())
            return _ahead(self._digested(self._zstd_library()))
        return self._digested(self._packed(_CHUNK))

    def digest(self, *, zeros: int = 0) -> str:
        """Return the digest of the unpacked bytes so far, followed by `zeros`; "" if not needed."""
        if not self._hash:
            return ""
        padded = self._hash.copy()
        padded.update(bytes(zeros))
        return f"{self._algorithm}:{padded.hexdigest()}"

    def packed_digest(self) -> str:
        """Read the layer again, and return the digest of its compressed bytes."""
        digest = hashlib.new(self._algorithm)
        self.position = 0
        for data in self._packed(_CHUNK):
            digest.update(data)
        return f"{self._algorithm}:{digest.hexdigest()}"

    def _digested(self, chunks: Unpacked) -> Unpacked:
        with closing(chunks):
            for chunk in chunks:
                if self._hash:
                    self._hash.update(chunk)
                yield chunk

    def _packed(self, size: int) -> Unpacked:
        while data := os.pread(self._file, size, self.position):
            self.position += len(data)
            yield data

    def _gunzip(self) -> Unpacked:
        try:
            yield from self._gzip_members()
        except gzip.error as error:
            raise self._layer.damaged(f"gzip: {error}") from None

    def _gzip_members(self) -> Unpacked:
        unzip, begun = gzip.decompressobj(wbits=31), False
        packed = self._packed(_GZIP_CHUNK)
        for data in packed:
            while data:
                if not begun:
                    # Some tools pad members with zeros, and isal needs a header in one piece.
                    while len(data := data.lstrip(b"\0")) < _GZIP_HEADER:
                        if not (more := next(packed, b"")):
                            break
                        data += more
                    unzip, begun = gzip.decompressobj(wbits=31), bool(data)
                if unpacked := unzip.decompress(data, _CHUNK):
                    yield unpacked
                begun = begun and not unzip.eof
                data = unzip.unconsumed_tail or unzip.unused_data
        while begun and (unpacked := unzip.decompress(b"", _CHUNK)):
            yield unpacked
        if begun and not unzip.eof:
            raise self._layer.damaged("gzip: it is truncated")

    def _zstd_library(self) -> Unpacked:
        options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}
        unzip, begun = zstd.ZstdDecompressor(options=options), False
        try:
            for data in self._packed(_GZIP_CHUNK):
                while data or (begun and not unzip.needs_input):
                    if not begun:
                        unzip, begun = zstd.ZstdDecompressor(options=options), True
                    if unpacked := unzip.decompress(data, _CHUNK):
                        yield unpacked
                    begun = not unzip.eof
                    data = b"" if begun else unzip.unused_data
        except zstd.ZstdError as error:
            raise self._layer.damaged(f"zstd: {error}") from None
        if begun:
            raise self._layer.damaged("zstd: it is truncated")

    def _zstd_program(self) -> Unpacked:
        program = programs.find("zstd")
        if not program:
            raise MissingTool(
                f"{self._layer.what} is compressed with zstd, which this node cannot decompress",
                do="Administrators: install the program zstd on this node.",
            )
        os.lseek(self._file, 0, os.SEEK_SET)
        with (
            programs.listen() as words,
            subprocess.Popen(
                [program, "-dcq", f"--long={_ZSTD_WINDOW}"],
                stdin=self._file,
                stdout=subprocess.PIPE,
                stderr=words,
                env=programs.environment(),
                preexec_fn=programs.die_with_parent(),  # noqa: PLW1509
            ) as process,
        ):
            assert process.stdout
            # If no more is needed, closing the pipe ends the program.
            with process.stdout as unpacked:
                while data := unpacked.read(_CHUNK):
                    self.position = os.lseek(self._file, 0, os.SEEK_CUR)
                    yield data
            if process.wait():
                raise self._layer.damaged(f"zstd: {programs.last_words(words)}")


def _ahead(chunks: Iterator[bytes]) -> Unpacked:
    """Yield chunks that another thread prepares: the libraries release Python's global lock."""
    made: queue.Queue[bytes | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
    stop = threading.Event()

    def work() -> None:
        try:
            for chunk in chunks:
                made.put(chunk)
                if stop.is_set():
                    return
            made.put(None)
        except BaseException as error:
            made.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (got := made.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got
    finally:
        stop.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                made.get(timeout=0.01)
