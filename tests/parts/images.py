"""Make real squashfs and SIF images, of any size, and read files back out of them."""

from __future__ import annotations

import os
import platform
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tests.parts.daemon import PATH, PartError, missing_commands

# A script that prints one file of an image, for ordinary users' jobs: IMAGE NAME.
READ_IMAGE = Path(__file__).with_name("read-image.sh")

# SIF, specification version 01: the header, its descriptors and the codes used here.
_LAUNCH = b"#!/usr/bin/env run-singularity\n"
_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
_DESCRIPTORS = 48
_DESCRIPTORS_OFFSET = 4096
_PARTITION = 0x4004
_GENERIC = 0x4007
_GROUP_1 = 0xF0000001
_SQUASHFS = 1
_PRIMARY_SYSTEM = 2
_ARCH = {"amd64": b"02", "arm64": b"04", "ppc64le": b"06", "s390x": b"11", "riscv64": b"12"}
_MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}
_PAGE = 4096
_CHUNK = 1 << 20


def missing() -> str:
    """Return a sentence that says what this host lacks to make images, or an empty string."""
    return missing_commands("mksquashfs", "unsquashfs")


def make_squashfs(
    path: Path, files: Mapping[str, bytes], *, compression: str = "gzip", size_bytes: int = 0
) -> Path:
    """Write a squashfs file system that holds the files, by name with directories; return path.

    size_bytes: make the file about this size, where it would be smaller, by a file "padding" of
    bytes that do not compress.
    """
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        for name, content in files.items():
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(0o755)
        tree.chmod(0o755)
        if size_bytes:
            with (tree / "padding").open("wb") as padding:
                _write_noise(padding, size_bytes)
        argv = ["mksquashfs", str(tree), str(path), "-noappend", "-all-root", "-no-progress"]
        _run([*argv, "-comp", compression])
    path.chmod(0o644)
    return path


def make_sif(
    path: Path,
    files: Mapping[str, bytes] | None = None,
    *,
    squashfs: Path | None = None,
    arch: str = "",
    size_bytes: int = 0,
    compression: str = "gzip",
) -> Path:
    """Write a SIF image with one primary system partition that holds the files; return path.

    The partition is made from files, or is the squashfs given. arch: Go's name (amd64, arm64 ...),
    by default this machine's. size_bytes: the file's size in bytes, rounded up to a page, where
    it would be smaller: random bytes, an object of their own, go in front of the partition. So
    the partition always is the end of the file, and a file cut short has no whole image.
    """
    if squashfs is None:
        with tempfile.TemporaryDirectory() as directory:
            made = make_squashfs(Path(directory) / "root", files or {}, compression=compression)
            return make_sif(path, squashfs=made, arch=arch, size_bytes=size_bytes)

    code = _ARCH[arch or _MACHINE.get(platform.machine(), platform.machine())]
    data = _page(_DESCRIPTORS_OFFSET + _DESCRIPTORS * _DESCRIPTOR.size)
    root = _page(squashfs.stat().st_size)
    noise = max(0, _page(size_bytes) - data - root)
    extra = struct.pack("<ii4s", _SQUASHFS, _PRIMARY_SYSTEM, code)
    objects = [_Object(_PARTITION, "root.squashfs", data + noise, root, extra)]
    if noise:
        objects.append(_Object(_GENERIC, "padding", data, noise, b""))
    with path.open("wb") as file:
        file.write(_header(code, objects=len(objects), data=data, data_size=noise + root))
        file.seek(_DESCRIPTORS_OFFSET)
        for number, item in enumerate(objects, start=1):
            file.write(_descriptor(number, item))
        file.seek(data)
        _write_noise(file, noise)
        file.write(squashfs.read_bytes())
        file.truncate(data + noise + root)
    path.chmod(0o644)
    return path


def read_from_image(path: Path, name: str) -> bytes:
    """Return the content of a file in a squashfs or SIF image; raise PartError if it is damaged."""
    return _run(["sh", str(READ_IMAGE), str(path), name])


class _Object(NamedTuple):
    kind: int
    name: str
    offset: int
    size_bytes: int
    extra: bytes


def _header(arch: bytes, *, objects: int, data: int, data_size: int) -> bytes:
    now = int(time.time())
    return _HEADER.pack(
        _LAUNCH,
        b"SIF_MAGIC",
        b"01",
        arch,
        uuid.uuid4().bytes,
        now,
        now,
        _DESCRIPTORS - objects,
        _DESCRIPTORS,
        _DESCRIPTORS_OFFSET,
        _DESCRIPTORS * _DESCRIPTOR.size,
        data,
        data_size,
    )


def _descriptor(number: int, item: _Object) -> bytes:
    now = int(time.time())
    return _DESCRIPTOR.pack(
        item.kind,
        True,
        number,
        _GROUP_1,
        0,
        item.offset,
        item.size_bytes,
        item.size_bytes,
        now,
        now,
        0,
        0,
        item.name.encode(),
        item.extra,
    )


def _page(size_bytes: int) -> int:
    return -(-size_bytes // _PAGE) * _PAGE


def _write_noise(file: BinaryIO, size_bytes: int) -> None:
    while size_bytes > 0:
        size_bytes -= file.write(os.urandom(min(size_bytes, _CHUNK)))


def _run(argv: list[str]) -> bytes:
    result = subprocess.run(argv, env={"PATH": PATH}, capture_output=True, check=False)
    if result.returncode != 0:
        raise PartError(f"{' '.join(argv)}: {result.stderr.decode(errors='replace')}")
    return result.stdout
