"""Converting one image: from its layers and configuration to one SIF or squashfs file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from hpcimg.convert import merge, oldsquashfs, replay, runtime, sif, squashfs
from hpcimg.convert.additions import Additions
from hpcimg.convert.layers import Layer
from hpcimg.convert.progress import Progress, Tell
from hpcimg.convert.receiver import Receiver
from hpcimg.convert.stream import TooWide
from hpcimg.convert.tree import NeedsReplay
from hpcimg.convert.writer import Writer
from hpcimg.errors import NotAnImage
from hpcimg.image import ociconfig

Way = Callable[[Writer, list[Layer], Additions, merge.Progress], None]
_LAYER_BYTES = 1 << 30  # that any layer may unpack to, in addition


class Work(NamedTuple):
    """One image to convert.

    `uri` is for errors, `config` the text of its OCI configuration. `sizes` are those of the layers
    in bytes, lowest first. `layer` returns the open file of one by its number, from 0, as often as
    asked; it may wait until that one has arrived. `output` is an empty regular file that this
    process may also open by /proc/self/fd. All files stay open. `directory` is empty and on the
    file system of the output; the caller removes what is left in it. `format` is sif or squashfs,
    `compression` as in `[stage] compression`. `max_unpacked_bytes` limits the files in the image; 0
    is no limit.
    """

    uri: str
    config: str
    sizes: tuple[int, ...]
    layer: Callable[[int], int]
    output: int
    directory: str
    format: str
    compression: str
    max_unpacked_bytes: int


def convert(work: Work, tell: Tell) -> None:
    """Fill the output, and report progress.

    Call it from the main thread: mksquashfs ends when the thread does. Raises HpcimgError, OSError.
    """
    config = ociconfig.parse(work.config, work.uri)
    layers = _layers(work, config.diff_ids)
    mksquashfs = squashfs.find_mksquashfs()
    progress = Progress(tell, layers, apart=not mksquashfs.reads_tar)
    additions = runtime.additions(config, work.format)
    offset = sif.PARTITION_OFFSET if work.format == "sif" else 0
    output = squashfs.Output(work.output, offset, work.compression, work.uri)
    by_archive = partial(squashfs.pack, mksquashfs, output)
    by_directory = partial(
        oldsquashfs.pack, mksquashfs, output, directory=work.directory, packed=progress.packed
    )

    def fill(way: Way, receiver: Receiver) -> None:
        writer = Writer(receiver, work.uri, work.max_unpacked_bytes)
        way(writer, layers, additions, partial(progress.read, receiver))

    def pack(by: Callable[[Callable[[Receiver], None]], None]) -> None:
        try:
            by(partial(fill, merge.merge))
        except NeedsReplay:
            by(partial(fill, replay.replay))

    try:
        pack(by_archive if mksquashfs.reads_tar else by_directory)
    except TooWide:
        pack(by_directory)
    if work.format == "sif":
        sif.write_front(work.output)
    progress.end()


def _layers(work: Work, diff_ids: tuple[str, ...]) -> list[Layer]:
    """Return the layers, with their digests from the configuration. Raises NotAnImage."""
    if not work.sizes:
        raise NotAnImage(f"{work.uri} cannot be converted", why="it has no layers")
    if diff_ids and len(diff_ids) != len(work.sizes):
        raise NotAnImage(
            f"{work.uri} cannot be converted",
            why=f"it has {len(work.sizes)} layers, and its configuration says {len(diff_ids)}",
            do="Build the image again, or use another one.",
        )
    # Layers also contain headers, and files hidden by higher layers.
    most = work.max_unpacked_bytes and _LAYER_BYTES + 2 * work.max_unpacked_bytes
    return [
        Layer(
            partial(work.layer, number), size, f"layer {number + 1} of {work.uri}",
            diff_id=diff_ids[number] if diff_ids else "", most_bytes=most,
        )
        for number, size in enumerate(work.sizes)
    ]  # fmt: skip
