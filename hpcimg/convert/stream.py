"""The tar stream that mksquashfs reads: plain headers in GNU's format, newly written.

No header of a layer is passed on, so mksquashfs reads only what was checked here.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable

from hpcimg.convert.tar import DIRECTORY, FIFO, FILE, LINK, SYMLINK, Member

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s247s")
_KINDS = {FILE: b"0", LINK: b"1", SYMLINK: b"2", DIRECTORY: b"5", FIFO: b"6"}
_NOBODY = b"0000000\0"  # everything is owned by root, whatever this says
_NO_SUM = b"        "
_MAGIC = b"ustar  \0"
_BLOCK = 512
_PADDING = [bytes(-size % _BLOCK) for size in range(_BLOCK)]
_OCTAL_LIMIT = 8**11
_BATCH_BYTES = 1 << 18
# mksquashfs looks through all of a directory for each name that it reads from an archive: 100,000
# take minutes.
_WIDEST = 20_000


class TooWide(Exception):
    """A directory has more entries than mksquashfs can read quickly from an archive."""


class Stream:
    """Writes members into a pipe, in large pieces. Raises OSError if it is closed, and TooWide."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pieces: list[bytes] = []
        self._widths: dict[bytes, int] = {}
        self._waiting = 0
        self.content_bytes = 0
        self.disk_bytes = 0  # always

    def add(self, member: Member, content: Iterable[bytes] = ()) -> None:
        """Add a member; for a file, `content` yields its `size` bytes."""
        above = member.name[: max(0, member.name.rfind(b"/"))]
        self._widths[above] = width = self._widths.get(above, 0) + 1
        if width > _WIDEST:
            raise TooWide
        self._put(header(member))
        if member.size:
            self.content_bytes += member.size
            for piece in content:
                self._put(piece)
            self._put(_PADDING[member.size % _BLOCK])

    def end(self) -> None:
        """Write the end of the archive, and everything buffered."""
        self._put(bytes(2 * _BLOCK))
        self._flush()

    def _put(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._waiting += len(piece)
        if self._waiting >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = memoryview(b"".join(self._pieces))
        self._pieces, self._waiting = [], 0
        while data:
            data = data[os.write(self._descriptor, data) :]


def header(member: Member) -> bytes:
    """Return a member's header, preceded by those for a long name and target."""
    front = b""
    if len(member.target) > 100:
        front += _long(b"K", member.target)
    if len(member.name) > 100:
        front += _long(b"L", member.name)
    return front + _block(_KINDS[member.kind], member)


def _long(kind: bytes, text: bytes) -> bytes:
    block = _block(kind, Member(FILE, b"././@LongLink", 0o644, 0, len(text) + 1))
    return block + text + b"\0" + bytes(-(len(text) + 1) % _BLOCK)


def _block(kind: bytes, member: Member) -> bytes:
    length = b"%011o\0" % member.size
    if member.size >= _OCTAL_LIMIT:
        length = b"\x80" + member.size.to_bytes(11, "big")
    block = _HEADER.pack(
        member.name, b"%07o\0" % member.mode, _NOBODY, _NOBODY, length,
        b"%011o\0" % member.mtime, _NO_SUM, kind, member.target, _MAGIC, b"",
    )  # fmt: skip
    # The lower half of this checksum is the sum of all bytes plus 1, which is below 65521 here.
    total = (zlib.adler32(block) & 0xFFFF) - 1
    return b"%b%06o\0 %b" % (block[:148], total, block[156:])
