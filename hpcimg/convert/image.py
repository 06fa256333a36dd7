"""Converting one image: its layers and configuration in, one SIF or squashfs file out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from hpcimg.convert import RUNTIMES, apptainer, ociconfig, programs, runtime, sif, squashfs
from hpcimg.convert.layers import Layer
from hpcimg.convert.merge import Limits, Merge
from hpcimg.convert.stream import Stream
from hpcimg.convert.tar import DIRECTORY, SYMLINK
from hpcimg.convert.tree import Repeated, Tree
from hpcimg.errors import MissingTool, NotAnImage

_TELL_EVERY_S = 0.25
_DIRECTORY_MODE = 0o755


class Work(NamedTuple):
    """One image to convert.

    `uri` is for errors, `config` the text of its OCI configuration. `layers` are
    open files, the lowest first, `output` an empty regular file that this process
    may also open by /proc/self/fd; all stay open. `folder` is an empty one on the
    file system of the output; what is left in it is for the caller to remove.
    `format` is sif or squashfs, `compression` as in `[stage] compression`.
    `max_unpacked_bytes` limits the files in the image; 0 is no limit.
    """

    uri: str
    config: str
    layers: tuple[int, ...]
    output: int
    folder: str
    format: str
    compression: str
    max_unpacked_bytes: int


def convert(work: Work, tell: Callable[[int, int], None]) -> None:
    """Fill the output. `tell` takes the bytes of the layers read so far, and all of them.

    To be called from the main thread: mksquashfs ends when the thread does.
    Raises HpcimgError, OSError.
    """
    config = ociconfig.parse(work.config, work.uri)
    layers = [
        Layer(descriptor, os.fstat(descriptor).st_size, f"layer {number} of {work.uri}")
        for number, descriptor in enumerate(work.layers, start=1)
    ]
    if not layers:
        raise NotAnImage(f"{work.uri} cannot be converted", why="it has no layers")
    try:
        mksquashfs = squashfs.find_mksquashfs()
    except MissingTool:
        program = programs.find(*RUNTIMES)
        if work.format != "sif" or not program:
            raise
        apptainer.build(
            program, work.layers, work.config, work.output, folder=work.folder,
            compression=work.compression, uri=work.uri,
        )  # fmt: skip
        return
    told = _Told(tell, layers)
    entries = runtime.over_image(config, work.format)

    def fill(stream: Stream) -> None:
        _fill(stream, work, layers, entries, told, careful=careful)

    for careful in (False, True):
        try:
            squashfs.pack(
                mksquashfs, work.output, fill, compression=work.compression, uri=work.uri,
                offset=sif.PARTITION_OFFSET if work.format == "sif" else 0,
            )  # fmt: skip
            break
        except Repeated:
            if careful:
                raise
    if work.format == "sif":
        sif.write_front(work.output)


def _fill(
    stream: Stream,
    work: Work,
    layers: list[Layer],
    entries: list[runtime.Entry],
    told: _Told,
    *,
    careful: bool,
) -> None:
    now = int(time.time())
    tree = Tree(len(layers), work.uri)
    merge = Merge(tree, stream, Limits(work.uri, work.max_unpacked_bytes), careful=careful)
    for entry in entries:
        if entry.kind == DIRECTORY:
            tree.take_directory(entry.name)
            merge.directories[entry.name] = entry.mode, now
        else:
            tree.take(entry.name)
            _add(stream, entry, now)
    for number in reversed(range(len(layers))):
        merge.lay(layers[number], number, told.of(number))
    merge.end()
    for entry in runtime.under_image():
        if tree.add_missing(entry.name, directory=entry.kind == DIRECTORY):
            if entry.kind == DIRECTORY:
                merge.directories[entry.name] = entry.mode, now
            else:
                _add(stream, entry, now)
    # At the end: a layer may give a directory's attributes after what is in it.
    for name in tree.directories():
        mode, mtime = merge.directories.get(name, (_DIRECTORY_MODE, now))
        stream.add(DIRECTORY, name, mode=mode, mtime=mtime)
    told.end()


def _add(stream: Stream, entry: runtime.Entry, now: int) -> None:
    if entry.kind == SYMLINK:
        stream.add(SYMLINK, entry.name, mode=entry.mode, mtime=now, target=entry.content)
    else:
        stream.add(
            entry.kind, entry.name, mode=entry.mode, mtime=now, size=len(entry.content),
            content=[entry.content],
        )  # fmt: skip


class _Told:
    """Word of how far the layers are read: never less than before, and not too often."""

    def __init__(self, tell: Callable[[int, int], None], layers: list[Layer]) -> None:
        self._tell = tell
        self._sizes = [layer.size_bytes for layer in layers]
        self._most = -1
        self._next = 0.0

    def of(self, number: int) -> Callable[[int], None]:
        """Return what takes the bytes read of a layer, those above it being done."""
        above = sum(self._sizes[number + 1 :])
        return lambda position: self._say(above + position)

    def end(self) -> None:
        """Tell that all is read."""
        self._next = 0
        self._say(sum(self._sizes))

    def _say(self, read: int) -> None:
        now = time.monotonic()
        if now >= self._next and read > self._most:
            self._most, self._next = read, now + _TELL_EVERY_S
            self._tell(read, sum(self._sizes))
