"""Files with holes in a tar archive: GNU tar manual, "Storing Sparse Files".

The old GNU format has the table in the header and in the blocks after it; pax formats 0.0 and 0.1
have it in records, format 1.0 before the content.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hpcimg.convert.layers import Layer, Reader

Segments = tuple[tuple[int, int], ...]  # offset and length of the parts that are not holes
_MOST_SEGMENTS = 100_000
_ZEROS = bytes(1 << 20)
_BLOCK = 512


class Table(NamedTuple):
    """Where a file's content is; `name` is "" if the member's own name applies."""

    segments: Segments
    size: int
    name: bytes = b""


def note(records: dict[bytes, bytes], key: bytes, value: bytes) -> None:
    """Add one pax record; the repeated ones of format 0.0 are joined as in 0.1."""
    if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
        before = records.get(b"GNU.sparse.map")
        key, value = b"GNU.sparse.map", value if before is None else before + b"," + value
    records[key] = value


def pax(records: dict[bytes, bytes], reader: Reader) -> Table | None:
    """Return the table from pax records, None if they describe no holes."""
    layer = reader.layer
    name = records.get(b"GNU.sparse.name", b"")
    if records.get(b"GNU.sparse.major") == b"1":
        size = decimal(records.get(b"GNU.sparse.realsize", b""), layer)
        numbers = _front(reader)
    elif b"GNU.sparse.map" in records:
        size = decimal(records.get(b"GNU.sparse.size", b""), layer)
        words = records[b"GNU.sparse.map"].split(b",") if records[b"GNU.sparse.map"] else []
        numbers = [decimal(word, layer) for word in words]
    else:
        return None
    return Table(_segments(numbers, size, layer), size, name)


def old_gnu(header: bytes, reader: Reader) -> Table:
    """Return the table that begins in the header, reading the blocks that continue it."""
    numbers: list[int] = []
    block, begin, end, more = header, 386, 482, header[482]
    while True:
        for at in range(begin, end, 24):
            if not block[at] and not block[at + 12]:
                break
            numbers += (_old(block[at : at + 12], reader), _old(block[at + 12 : at + 24], reader))
        if not more:
            break
        if len(numbers) > 2 * _MOST_SEGMENTS:
            raise _wrong(reader.layer)
        block, begin, end = reader.read(_BLOCK), 0, 504
        more = block[504]
    size = _old(header[483:495], reader)
    return Table(_segments(numbers, size, reader.layer), size)


def content(segments: Segments, size: int, reader: Reader) -> Iterator[bytes]:
    """Yield the content of a file with its holes filled with zeros."""
    at = 0
    for offset, length in (*segments, (size, 0)):
        while at < offset:
            zeros = _ZEROS[: offset - at]
            at += len(zeros)
            yield zeros
        yield from reader.copy(length)
        at += length


def _segments(numbers: list[int], size: int, layer: Layer) -> Segments:
    segments = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    at = 0
    for offset, length in segments:
        if offset < at or length < 0:
            raise _wrong(layer)
        at = offset + length
    if len(numbers) % 2 or at > size or len(segments) > _MOST_SEGMENTS:
        raise _wrong(layer)
    layer.check_size(size)
    return segments


def _front(reader: Reader) -> list[int]:
    """Read the table before the content: a count, then numbers, one per line."""
    lines, wanted = [b""], 1
    while len(lines) <= wanted:
        *whole, rest = (lines.pop() + reader.read(_BLOCK)).split(b"\n")
        lines += [*whole, rest]
        count = decimal(lines[0], reader.layer) if len(lines) > 1 else 0
        wanted = 1 + 2 * count
        if count > _MOST_SEGMENTS or (len(lines) <= wanted and len(rest) > 20):
            raise _wrong(reader.layer)
    return [decimal(line, reader.layer) for line in lines[1:wanted]]


def _old(field: bytes, reader: Reader) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip()
    if len(text) > 12 or not set(text) <= set(b"01234567"):
        raise _wrong(reader.layer)
    return int(text or b"0", 8)


def decimal(text: bytes, layer: Layer) -> int:
    """Parse a number in a pax record."""
    if not text.isdigit() or len(text) > 19:
        raise layer.damaged("a number in a pax header is malformed")
    return int(text)


def _wrong(layer: Layer) -> Exception:
    return layer.damaged("the table of a sparse file is wrong")
