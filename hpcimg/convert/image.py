"""Converting one image: its layers and configuration in, one SIF or squashfs file out."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import NamedTuple

from hpcimg.convert import ociconfig, oldsquashfs, runtime, sif, squashfs
from hpcimg.convert.layers import Layer
from hpcimg.convert.merge import Limits, Merge
from hpcimg.convert.progress import Progress, Tell
from hpcimg.convert.receiver import Receiver
from hpcimg.convert.tar import DIRECTORY, SYMLINK
from hpcimg.convert.tree import Repeated, Tree
from hpcimg.errors import NotAnImage

_DIRECTORY_MODE = 0o755


class Work(NamedTuple):
    """One image to convert.

    `uri` is for errors, `config` the text of its OCI configuration. `layers` are
    open files, the lowest first, `output` an empty regular file that this process
    may also open by /proc/self/fd; all stay open. `directory` is an empty one on the
    file system of the output; what is left in it is for the caller to remove.
    `format` is sif or squashfs, `compression` as in `[stage] compression`.
    `max_unpacked_bytes` limits the files in the image; 0 is no limit.
    """

    uri: str
    config: str
    layers: tuple[int, ...]
    output: int
    directory: str
    format: str
    compression: str
    max_unpacked_bytes: int


def convert(work: Work, tell: Tell) -> None:
    """Fill the output, and tell how far it is.

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
    mksquashfs = squashfs.find_mksquashfs()
    progress = Progress(tell, layers, apart=not mksquashfs.reads_tar)
    entries = runtime.over_image(config, work.format)

    def fill(receiver: Receiver) -> None:
        _fill(receiver, work, layers, entries, progress, careful=careful)

    if mksquashfs.reads_tar:
        pack = squashfs.pack
    else:
        pack = partial(oldsquashfs.pack, directory=work.directory, packed=progress.packed)
    for careful in (False, True):
        try:
            pack(
                mksquashfs, work.output, fill, compression=work.compression, uri=work.uri,
                offset=sif.PARTITION_OFFSET if work.format == "sif" else 0,
            )  # fmt: skip
            break
        except Repeated:
            if careful:
                raise
    if work.format == "sif":
        sif.write_front(work.output)
    progress.end()


def _fill(
    receiver: Receiver,
    work: Work,
    layers: list[Layer],
    entries: list[runtime.Entry],
    progress: Progress,
    *,
    careful: bool,
) -> None:
    now = int(time.time())
    tree = Tree(len(layers), work.uri)
    merge = Merge(tree, receiver, Limits(work.uri, work.max_unpacked_bytes), careful=careful)
    for entry in entries:
        if entry.kind == DIRECTORY:
            tree.take_directory(entry.name)
            merge.directories[entry.name] = entry.mode, now
        else:
            tree.take(entry.name)
            _add(receiver, entry, now)
    for number in reversed(range(len(layers))):
        merge.lay(layers[number], number, progress.of(number, receiver))
    merge.end()
    for entry in runtime.under_image():
        if tree.add_missing(entry.name, directory=entry.kind == DIRECTORY):
            if entry.kind == DIRECTORY:
                merge.directories[entry.name] = entry.mode, now
            else:
                _add(receiver, entry, now)
    # At the end: a layer may give a directory's attributes after what is in it.
    for name in tree.directories():
        mode, mtime = merge.directories.get(name, (_DIRECTORY_MODE, now))
        receiver.add(DIRECTORY, name, mode=mode, mtime=mtime)


def _add(receiver: Receiver, entry: runtime.Entry, now: int) -> None:
    if entry.kind == SYMLINK:
        receiver.add(SYMLINK, entry.name, mode=entry.mode, mtime=now, target=entry.content)
    else:
        receiver.add(
            entry.kind, entry.name, mode=entry.mode, mtime=now, size=len(entry.content),
            content=[entry.content],
        )  # fmt: skip
