"""Merge layers without packing the result: the input that conversions give to mksquashfs."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hpcimg.convert.additions import Additions
from hpcimg.convert.layers import Layer
from hpcimg.convert.merge import Progress, merge
from hpcimg.convert.receiver import Receiver
from hpcimg.convert.replay import replay
from hpcimg.convert.stream import Stream
from hpcimg.convert.tree import NeedsReplay
from hpcimg.convert.unpack import Directory
from hpcimg.convert.writer import Writer
from tests.parts.layers import opened

Way = Callable[[Writer, Sequence[Layer], Additions, Progress], None]
NOTHING = Additions()


def archive_of(
    layers: Sequence[bytes],
    *,
    limit: int = 0,
    additions: Additions = NOTHING,
    ways: Sequence[Way] = (merge, replay),
) -> bytes:
    """Return the input for mksquashfs, by the first way that can merge the layers."""
    for way in ways:
        with contextlib.suppress(NeedsReplay), tempfile.TemporaryFile() as archive:
            stream = Stream(archive.fileno())
            _run(way, stream, layers, limit, additions)
            stream.end()
            archive.seek(0)
            return archive.read()
    raise AssertionError("no way could tell")


def unpack_into(
    path: Path,
    layers: Sequence[bytes],
    *,
    additions: Additions = NOTHING,
    way: Way = replay,
) -> bytes:
    """Write the input for a mksquashfs that reads no archives; return its pseudo file."""
    pseudo = io.BytesIO()
    with contextlib.closing(Directory(str(path), pseudo, uri="docker://x")) as receiver:
        _run(way, receiver, layers, 0, additions)
        receiver.end()
    return pseudo.getvalue()


def _run(
    way: Way, receiver: Receiver, layers: Sequence[bytes], limit: int, additions: Additions
) -> None:
    with opened(*layers) as descriptors:
        way(
            Writer(receiver, "docker://x", limit),
            [
                Layer(partial(int, descriptor), len(layers[number]), f"layer {number + 1}")
                for number, descriptor in enumerate(descriptors)
            ],
            additions,
            lambda _number, _read: None,
        )
