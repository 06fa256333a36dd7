"""Packing a merged image by way of a directory, into which it is unpacked first.

For a mksquashfs that cannot read archives, squashfs-tools 4.3 and 4.4, and for images that newer
ones read too slowly from an archive. The disk needs room for the files. Only options of 4.3 are
used.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from tempfile import TemporaryDirectory

from hpcimg import programs
from hpcimg.convert.receiver import Receiver
from hpcimg.convert.squashfs import Mksquashfs, Output, explain, options, started
from hpcimg.convert.unpack import Directory

_HAS_OFFSET = (4, 4)
_ALWAYS_THERE = "gzip:1"
_CHUNK = 1 << 20
_LOOK_EVERY_S = 1.0


def pack(
    mksquashfs: Mksquashfs,
    output: Output,
    fill: Callable[[Receiver], None],
    *,
    directory: str,
    packed: Callable[[int], None],
) -> None:
    """Write the members that `fill` adds as a squashfs file system.

    Works in `directory` and leaves nothing there. `packed` is called with the size of the file
    in bytes while it grows. Raises HpcimgError, OSError, and what `fill` raises.
    """
    with TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as own:
        tree, pseudo = f"{own}/tree", f"{own}/pseudo"
        os.mkdir(tree)
        with open(pseudo, "xb") as lines, closing(Directory(tree, lines, uri=output.uri)) as files:
            fill(files)
            files.end()
        ready = mksquashfs.version >= _HAS_OFFSET
        argv = [".", f"/proc/self/fd/{output.file}", "-exit-on-error", "-pf", pseudo]
        argv += ["-offset", str(output.offset)] if ready else []
        argv += options(_known(mksquashfs, output.compression))
        _run(mksquashfs, argv, output, tree, packed=packed)
        if output.offset and not ready:
            _move(output.file, output.offset)


def _run(
    mksquashfs: Mksquashfs,
    argv: list[str],
    output: Output,
    tree: str,
    *,
    packed: Callable[[int], None],
) -> None:
    with (
        programs.listen() as words,
        started(mksquashfs, argv, output.file, words=words, cwd=tree) as process,
    ):
        while True:
            try:
                code = process.wait(_LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                packed(os.fstat(output.file).st_size)
        if code:
            raise explain(code, programs.last_words(words), output.uri)


def _known(mksquashfs: Mksquashfs, compression: str) -> str:
    """Return the wanted compression, or one that is always available: old builds differ."""
    if mksquashfs.reads_tar:
        return compression
    said = subprocess.run(
        [mksquashfs.path, "-help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=programs.environment(),
        check=False,
    )
    name = compression.partition(":")[0]
    return compression if re.search(rf"(?m)^\t+{name}\b", said.stderr) else _ALWAYS_THERE


def _move(output: int, offset: int) -> None:
    """Move the content of a file behind zeros, from its end: this needs no extra room."""
    at = os.fstat(output).st_size
    while at:
        size = min(_CHUNK, at)
        at -= size
        data = os.pread(output, size, at)
        while data:
            written = os.pwrite(output, data, at + offset + size - len(data))
            data = data[written:]
    os.pwrite(output, bytes(offset), 0)
