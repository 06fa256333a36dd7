"""Recognizing SIF and squashfs images by their bytes.

SIF: github.com/apptainer/sif, pkg/sif (global header of 128 bytes, descriptors of 585 bytes, all
little-endian). Squashfs: superblock of version 4.0 (Linux, Documentation/filesystems/squashfs.rst).
The bytes are hostile: every number in them is checked before it is used.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from hpcimg.errors import Damaged, NotAnImage, WrongArchitecture

SIF_HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
SIF_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
SIF_MAGIC = b"SIF_MAGIC\0"
_SIF_MAX_DESCRIPTORS = 4096
SIF_PARTITION = 0x4004
SIF_PRIMARY = 2
_SIF_SQUASHFS = 1  # others are ext3, and encrypted squashfs
ARCHITECTURES = {
    b"01\0": "i386", b"02\0": "x86_64", b"03\0": "arm", b"04\0": "aarch64", b"05\0": "ppc64",
    b"06\0": "ppc64le", b"07\0": "mips", b"08\0": "mipsle", b"09\0": "mips64",
    b"10\0": "mips64le", b"11\0": "s390x", b"12\0": "riscv64",
}  # fmt: skip

_SQUASHFS_MAGIC = b"hsqs"
_SQUASHFS_SUPERBLOCK = 96
_LAUNCH_LINE = 31  # the oldest Singularity images: a launch line, then squashfs


class Image(NamedTuple):
    """The format of an image file. `architecture` is "" if the format does not say."""

    extension: str
    architecture: str


def identify(descriptor: int, what: str, *, machine: str = "") -> Image:
    """Return the format of the open file, after checking that all of it is there.

    `what` names it in errors; `machine` is the required processor, as in uname, by default this
    machine's. Raises NotAnImage, Damaged (truncated), WrongArchitecture.
    """
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, SIF_HEADER.size, 0)
    if head[32:42] == SIF_MAGIC:
        image = _sif(descriptor, head, size, what)
    elif head[:4] == _SQUASHFS_MAGIC:
        image = _squashfs(descriptor, 0, size, what)
    elif head[_LAUNCH_LINE : _LAUNCH_LINE + 4] == _SQUASHFS_MAGIC:
        image = _squashfs(descriptor, _LAUNCH_LINE, size, what)
    else:
        raise NotAnImage(f"{what} is not an image", why=_guess(head, size))
    machine = machine or os.uname().machine
    if image.architecture not in ("", machine):
        raise WrongArchitecture(
            f"{what} is an image for another processor",
            why=f"it was built for {image.architecture}, this machine is {machine}",
        )
    return image


def _sif(descriptor: int, head: bytes, size: int, what: str) -> Image:
    if len(head) < SIF_HEADER.size:
        raise _cut_short(what, SIF_HEADER.size, size)
    fields = SIF_HEADER.unpack(head)
    architecture = ARCHITECTURES.get(fields[3], "")
    total, offset = fields[8], fields[9]
    if not 0 < total <= _SIF_MAX_DESCRIPTORS or not SIF_HEADER.size <= offset:
        raise NotAnImage(f"{what} is a SIF file with an invalid header")
    table = total * SIF_DESCRIPTOR.size
    if offset + table > size:
        raise _cut_short(what, offset + table, size)
    raw = os.pread(descriptor, table, offset)
    needed, roots = 0, []
    for number in range(total):
        entry = SIF_DESCRIPTOR.unpack_from(raw, number * SIF_DESCRIPTOR.size)
        if not entry[1]:
            continue
        begin, length = entry[5], entry[6]
        if begin < 0 or length < 0:
            raise NotAnImage(f"{what} is a SIF file with an invalid descriptor")
        needed = max(needed, begin + length)
        if entry[0] == SIF_PARTITION:
            file_system, part_type, part_arch = struct.unpack_from("<ii3s", entry[13])
            if part_type == SIF_PRIMARY:
                roots.append((file_system, begin, length))
                architecture = ARCHITECTURES.get(part_arch, architecture)
    if size < needed:
        raise _cut_short(what, needed, size)
    if len(roots) != 1:
        how = f"with {len(roots)} root file systems" if roots else "without a root file system"
        raise NotAnImage(f"{what} is a SIF file {how}")
    file_system, begin, length = roots[0]
    if file_system == _SIF_SQUASHFS:
        _check_root(descriptor, begin, length, what)
    return Image("sif", architecture)


def _check_root(descriptor: int, begin: int, length: int, what: str) -> None:
    """Check that a partition contains the squashfs that its descriptor states."""
    why = "it does not begin with the squashfs magic number"
    if os.pread(descriptor, min(length, 4), begin) == _SQUASHFS_MAGIC:
        try:
            _squashfs(descriptor, begin, begin + length, what)
            return
        except Damaged:  # by whoever made the file: all of it is here
            why = "it is longer than its partition"
    raise NotAnImage(f"the root file system in {what} cannot be mounted", why=why)


def _squashfs(descriptor: int, offset: int, size: int, what: str) -> Image:
    block = os.pread(descriptor, _SQUASHFS_SUPERBLOCK, offset)
    if len(block) < _SQUASHFS_SUPERBLOCK:
        raise _cut_short(what, offset + _SQUASHFS_SUPERBLOCK, size)
    major, minor = struct.unpack_from("<HH", block, 28)
    (bytes_used,) = struct.unpack_from("<Q", block, 40)
    if (major, minor) != (4, 0):
        raise NotAnImage(f"{what} is squashfs {major}.{minor}", why="Linux mounts only 4.0")
    if bytes_used < _SQUASHFS_SUPERBLOCK:
        raise NotAnImage(f"{what} is squashfs with an invalid header")
    if offset + bytes_used > size:
        raise _cut_short(what, offset + bytes_used, size)
    return Image("squashfs", "")


def _cut_short(what: str, needed: int, size: int) -> Damaged:
    return Damaged(f"{what} is truncated", why=f"its header says {needed} bytes, {size} arrived")


def _guess(head: bytes, size: int) -> str:
    text = head.lstrip().lower()
    if not size:
        return "the file is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page"
    if text.startswith((b"{", b"[")):
        return "it is JSON text"
    if head.startswith(b"\x1f\x8b"):
        return "it is a gzip archive"
    if text.startswith(b"version https://git-lfs"):
        return "it is what Git LFS has in the place of a file; get the file with `git lfs pull`"
    return "it begins with neither the SIF nor the squashfs magic number"
