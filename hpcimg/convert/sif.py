"""The header of a SIF file whose only object is a squashfs: github.com/apptainer/sif, pkg/sif."""

from __future__ import annotations

import os
import platform
import struct
import time
import uuid

from hpcimg.image.formats import (  # fmt: skip
    ARCHITECTURES,
    SIF_DESCRIPTOR,
    SIF_HEADER,
    SIF_MAGIC,
    SIF_PARTITION,
    SIF_PRIMARY,
)

_LAUNCH = b"#!/usr/bin/env run-singularity\n"
_VERSION = b"01"
_UNKNOWN = b"00"
_DESCRIPTORS = 48  # as in Apptainer: leaves room for signatures
_DESCRIPTORS_OFFSET = 4096
_DATA_OFFSET = _DESCRIPTORS_OFFSET + _DESCRIPTORS * SIF_DESCRIPTOR.size
_GROUP = 0xF0000001
_SQUASHFS = 1

# Where the squashfs begins: aligned to a page, also on machines with large pages.
PARTITION_OFFSET = 65536


def write_front(output: int) -> None:
    """Complete a file that contains a squashfs from PARTITION_OFFSET to its end."""
    size = os.fstat(output).st_size - PARTITION_OFFSET
    padded = size + PARTITION_OFFSET - _DATA_OFFSET
    now = int(time.time())
    codes = {machine: code for code, machine in ARCHITECTURES.items()}
    code = codes.get(platform.machine(), _UNKNOWN)
    header = SIF_HEADER.pack(
        _LAUNCH, SIF_MAGIC, _VERSION, code, uuid.uuid4().bytes, now, now,
        _DESCRIPTORS - 1, _DESCRIPTORS, _DESCRIPTORS_OFFSET, _DESCRIPTORS * SIF_DESCRIPTOR.size,
        _DATA_OFFSET, padded,
    )  # fmt: skip
    partition = SIF_DESCRIPTOR.pack(
        SIF_PARTITION, True, 1, _GROUP, 0, PARTITION_OFFSET, size, padded, now, now, 0, 0,
        b"rootfs.squashfs", struct.pack("<ii3s", _SQUASHFS, SIF_PRIMARY, code),
    )  # fmt: skip
    front = header.ljust(_DESCRIPTORS_OFFSET, b"\0") + partition
    if os.pwrite(output, front, 0) != len(front):
        raise OSError("the front of a SIF file could not be written")
