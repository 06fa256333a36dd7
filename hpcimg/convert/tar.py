"""Reading the members of a tar archive: POSIX ustar and pax, GNU's long names and sparse files.

pax(1), "pax Interchange Format" and "ustar Interchange Format"; GNU tar manual, "Basic Tar Format"
and "Storing Sparse Files". Headers are read here rather than by tarfile, which is several times
slower for many small files and reads extended headers of any length. Every number and name is
hostile.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from hpcimg.convert import sparse
from hpcimg.convert.layers import Layer, Reader

FILE, DIRECTORY, SYMLINK, LINK, FIFO, DEVICE = range(6)
_KINDS = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"S": FILE,
    b"1": LINK, b"2": SYMLINK, b"3": DEVICE, b"4": DEVICE, b"5": DIRECTORY, b"6": FIFO,
}  # fmt: skip
# Headers that belong to the next member: GNU's long name and link, pax records.
_EXTENDED = (b"L", b"K", b"x", b"X")
# Records for all members, a volume label: ignored.
_LEFT_OUT = (b"g", b"V")

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MAX_EXTENDED_BYTES = 1 << 20
MAX_PATH_BYTES = 4095  # PATH_MAX without the zero byte: the kernel's limit
MAX_COMPONENT_BYTES = 255
_MAX_TIME = (1 << 32) - 1  # squashfs stores 32 bits
_TIME = re.compile(rb"(-?)(\d{1,18})(?:\.\d*)?")
# GNU's names take precedence over those of pax, in any order. No pax key contains a =.
_GNU_NAMES = {b"L": b"=name", b"K": b"=link"}


class Member(NamedTuple):
    """One member. `name` and a hard link's `target` are relative and plain: no `.`, no `..`.

    A file's content comes next in the reader: `size` bytes of it, or as `segments` says.
    """

    kind: int
    name: bytes
    mode: int
    mtime: int
    size: int = 0
    target: bytes = b""
    segments: sparse.Segments | None = None


def members(reader: Reader) -> Iterator[Member]:
    """Yield all members, then read to the end of the layer.

    Before requesting the next one, the caller may read as much of a file's content as it wants.
    Raises NotAnImage, TooLarge.
    """
    layer = reader.layer
    extended: dict[bytes, bytes] = {}
    while (block := _next_header(reader)) is not None:
        kind = block[156:157]
        stored = _number(block[124:136], layer)
        if stored < 0:
            raise layer.damaged("a file of negative size")
        if kind in _EXTENDED:
            _extend(extended, kind, stored, reader)
            continue
        if kind not in _KINDS:
            if kind not in _LEFT_OUT:
                raise layer.refused(f"it has a member of unknown type, {kind!r}")
            reader.skip_to(reader.position + _padded(stored))
            continue
        name = extended.get(b"=name") or extended.get(b"path") or _name(block)
        # Before POSIX, a trailing slash marked a directory.
        known = DIRECTORY if kind == b"\0" and name.endswith(b"/") else _KINDS[kind]
        target, segments = b"", None
        if known == FILE:
            if extended.get(b"size"):
                stored = sparse.decimal(extended[b"size"], layer)
            table = sparse.old_gnu(block, reader) if kind == b"S" else None
            begin, size = reader.position, stored
            end = begin + stored
            if table := table or (sparse.pax(extended, reader) if extended else None):
                if reader.position + sum(length for _, length in table.segments) > begin + stored:
                    raise layer.damaged("the table of a sparse file is wrong")
                segments, size = table.segments, table.size
                name = table.name or name
        else:
            # Only files have content, whatever the header of another member says.
            size, stored, end = 0, 0, reader.position
            if known in (LINK, SYMLINK):
                target = (
                    extended.get(b"=link")
                    or extended.get(b"linkpath")
                    or block[157:257].partition(b"\0")[0]
                )
                if not target:
                    raise layer.refused(f"the link {shown(name)} in it leads nowhere")
                target = plain(target, layer) if known == LINK else _checked(target, layer)
        mode = _number(block[100:108], layer) & 0o7777
        mtime = _seconds(block, extended, layer) if extended else _number(block[136:148], layer)
        mtime = min(max(0, mtime), _MAX_TIME)
        yield Member(known, plain(name, layer), mode, mtime, size, target, segments)
        extended = {}
        reader.skip_to(end)
        # Some omit the padding after the last member's content.
        reader.skip_to(end + -stored % _BLOCK, may_end=True)
    reader.drain()


def plain(name: bytes, layer: Layer) -> bytes:
    """Return a name without slashes at its ends and without `.` and `..`; "" is the root.

    `a/..` is empty, whatever `a` may be, and `..` in the root is the root. Raises NotAnImage for a
    path that no kernel accepts.
    """
    if name[:1] in b"/." or name[-1:] in b"/." or b"//" in name or b"/./" in name or b".." in name:
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        name = b"/".join(parts)
    if len(name) > MAX_COMPONENT_BYTES and any(
        len(part) > MAX_COMPONENT_BYTES for part in name.split(b"/")
    ):
        raise layer.refused(f"the name {shown(name)} in it is longer than a file system allows")
    return _checked(name, layer)


def shown(name: bytes) -> str:
    """Return a name for display in errors."""
    text = name.decode(errors="backslashreplace")
    return text if len(text) <= 200 else f"{text[:200]}..."


def _checked(name: bytes, layer: Layer) -> bytes:
    if len(name) > MAX_PATH_BYTES:
        raise layer.refused(f"the path {shown(name)} in it is longer than {MAX_PATH_BYTES} bytes")
    if b"\0" in name:
        raise layer.refused(f"the path {shown(name)} in it holds a zero byte")
    return name


def _next_header(reader: Reader) -> bytes | None:
    """Return the next header, None at the end: two zero blocks, or the end of the layer."""
    if reader.at_end():
        return None
    block = reader.read(_BLOCK)
    if block == _ZEROS:
        if reader.at_end() or reader.read(_BLOCK) == _ZEROS:
            return None
        raise reader.layer.damaged("a block of zeros between two files")
    if not _sum_fits(block, reader.layer):
        if reader.position == _BLOCK:
            raise reader.layer.refused(
                "it is not a tar archive, uncompressed or compressed with gzip or zstd"
            )
        raise reader.layer.damaged("the checksum of a file's header is invalid")
    return block


def _sum_fits(block: bytes, layer: Layer) -> bool:
    """Tell whether a header's checksum is the sum of its bytes, with its own field as blanks."""
    digits = block[148:156].strip(b"\0 ")
    if not digits.isdigit():
        return False
    said = _number(digits, layer)
    begin, end = block[:148], block[156:]
    # zlib's checksum contains the sum, modulo 65521, and is many times faster than sum().
    if (zlib.adler32(b"%b        %b" % (begin, end)) & 0xFFFF) == (said + 1) % 65521:
        return True
    # Some old programs added signed bytes.
    return said == sum(byte - 256 * (byte > 127) for byte in begin + end) + 8 * ord(" ")


def _number(field: bytes, layer: Layer) -> int:
    """Parse a number: octal digits, or GNU's binary form if the first bit is set."""
    if field[:1] >= b"\x80":
        return (
            int.from_bytes(field, "big", signed=True)
            if field[0] == 0xFF
            else (int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big"))
        )
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    try:
        if not digits or digits.lstrip(b"-").isdigit():  # int() accepts more, such as 0o7 and 7_7
            return int(digits or b"0", 8)
    except ValueError:
        pass
    raise layer.damaged("a number in a file's header is malformed")


def _seconds(block: bytes, extended: dict[bytes, bytes], layer: Layer) -> int:
    """Return a member's time, truncated to seconds as Python does for byte code."""
    text = extended.get(b"mtime")
    if not text:
        return _number(block[136:148], layer)
    said = _TIME.fullmatch(text)
    if not said:
        raise layer.damaged("a time in a pax header is malformed")
    return -1 if said[1] else int(said[2])  # squashfs cannot store times before 1970


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = _prefix(block) if block[345] else b""
    return prefix + b"/" + name if prefix else name


def _prefix(block: bytes) -> bytes:
    """Return the prefix of the name in a header."""
    if block[257:263] == b"ustar\0":
        # star stores times after the prefix.
        end = 345 + 131 if block[508:512] == b"tar\0" else 500
        return block[345:end].partition(b"\0")[0]
    if block[257:265] != b"ustar  \0" or all(map(_is_number, (block[345:357], block[357:369]))):
        return b""  # GNU headers have times there
    # Docker until 17.05, with Go before 1.8, wrote GNU's magic and yet a prefix.
    # https://go.dev/issue/12594
    prefix = block[345:500].partition(b"\0")[0]
    return prefix if prefix.isascii() else b""


def _is_number(field: bytes) -> bool:
    return field[:1] >= b"\x80" or not field.partition(b"\0")[0].strip(b" ").strip(b"01234567")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _extend(extended: dict[bytes, bytes], kind: bytes, size: int, reader: Reader) -> None:
    layer = reader.layer
    if size > _MAX_EXTENDED_BYTES:
        raise layer.refused(f"it has a name or header of {size} bytes")
    end = reader.position + _padded(size)
    data = reader.read(size)
    reader.skip_to(end)
    if kind in _GNU_NAMES:
        extended[_GNU_NAMES[kind]] = data.partition(b"\0")[0]
    else:
        # Of two headers for one member, only the second counts.
        for key in [key for key in extended if not key.startswith(b"=")]:
            del extended[key]
        while data:
            length, _, _ = data.partition(b" ")
            if not length.isdigit() or len(length) > 7:
                raise layer.damaged("a pax header cannot be read")
            record = data[: int(length)]
            key, equals, value = record[len(length) + 1 :].partition(b"=")
            if len(record) != int(length) or not equals or value[-1:] != b"\n":
                raise layer.damaged("a pax header cannot be read")
            sparse.note(extended, key, value[:-1])
            data = data[len(record) :]
