"""Make layers of OCI images, convert them, and read the result."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpcimg.convert.image import Work, convert
from hpcimg.convert.progress import Tell
from tests.parts.daemon import PATH, missing_commands

TIME = 1_600_000_000
# Where a SIF file made by hpcimg has its squashfs.
PARTITION_OFFSET = 65536


def missing() -> str:
    """Return a sentence that says what this host lacks to convert, or an empty string."""
    return missing_commands("mksquashfs", "unsquashfs")


def file(name: str, content: bytes = b"", *, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    """Return a file."""
    member = _member(name, tarfile.REGTYPE, mode)
    member.size = len(content)
    return member, content


def directory(name: str, *, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    """Return a directory."""
    return _member(name, tarfile.DIRTYPE, mode), b""


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """Return a hard link."""
    return _member(name, tarfile.LNKTYPE, 0o644, target), b""


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """Return a symbolic link."""
    return _member(name, tarfile.SYMTYPE, 0o777, target), b""


def special(name: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    """Return a device or a pipe."""
    return _member(name, kind, 0o600), b""


def whiteout(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """Return a whiteout of a path in lower layers."""
    head, slash, last = name.rpartition("/")
    return file(f"{head}{slash}.wh.{last}")


def opaque(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """Return the mark of an opaque directory."""
    return file(f"{name}/.wh..wh..opq" if name else ".wh..wh..opq")


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return an archive of these members, in their order."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format, errors="surrogateescape") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def layer(
    *members: tuple[tarfile.TarInfo, bytes], pack: Callable[[bytes], bytes] = gzip.compress
) -> bytes:
    """Return a layer as it is stored in registries."""
    return pack(tar(*members))


def zstd(data: bytes, *options: str) -> bytes:
    """Pack a layer with the program zstd."""
    argv = ["zstd", "-qc", *options]
    return subprocess.run(argv, input=data, capture_output=True, check=True).stdout


@contextmanager
def opened(*layers: bytes) -> Iterator[tuple[int, ...]]:
    """Write layers to open files."""
    descriptors = []
    try:
        for data in layers:
            descriptors.append(os.memfd_create("layer"))
            os.pwrite(descriptors[-1], data, 0)
        yield tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def converted(
    path: Path,
    layers: Sequence[bytes],
    *,
    format: str = "squashfs",
    config: str = "{}",
    compression: str = "zstd:1",
    limit: int = 0,
    tell: Tell = lambda _done, _total, _disk: None,
) -> Path:
    """Convert layers to an image at a path; return the path."""
    directory_ = path.with_name(f"{path.name}.work")
    directory_.mkdir()
    output = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    try:
        with opened(*layers) as descriptors:
            convert(
                Work(
                    uri="docker://x",
                    config=config,
                    sizes=tuple(map(len, layers)),
                    layer=descriptors.__getitem__,
                    output=output,
                    directory=str(directory_),
                    format=format,
                    compression=compression,
                    max_unpacked_bytes=limit,
                ),
                tell,
            )
    finally:
        os.close(output)
        assert not list(directory_.iterdir())
    return path


def unpack(path: Path) -> Path:
    """Unpack an image beside it; return the directory, which holds files of this process' own."""
    to = path.with_name(f"{path.name}.tree")
    _unsquashfs(path, "-n", "-q", "-d", str(to))
    return to


def listing(path: Path) -> list[str]:
    """Return a line for each entry of an image: mode, owner, size, time, name, target."""
    return _unsquashfs(path, "-lln").decode(errors="surrogateescape").splitlines()


def _unsquashfs(path: Path, *options: str) -> bytes:
    with path.open("rb") as file:
        is_sif = file.read(41).endswith(b"SIF_MAGIC")
    offset = ["-o", str(PARTITION_OFFSET)] if is_sif else []
    argv = ["unsquashfs", *options, *offset, str(path)]
    return subprocess.run(argv, env={"PATH": PATH}, capture_output=True, check=True).stdout


def _member(name: str, kind: bytes, mode: int, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime, member.linkname = kind, mode, TIME, target
    return member
