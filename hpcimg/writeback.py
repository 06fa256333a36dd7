"""Beginning early to write a file to the disk, so that fsync(2) at its end finds little to do.

By itself the kernel begins when memory is full of what is to be written, or half a minute later.
"""

from __future__ import annotations

import ctypes
from typing import Any

_WRITE = 2  # SYNC_FILE_RANGE_WRITE
_sync_file_range: Any = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_STEP_BYTES = 8 << 20


class Writeback:
    """Word to the kernel that what is in a file is to go to the disk, now and without waiting.

    It promises nothing: fsync(2) does.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begun = 0

    def reached(self, position: int) -> None:
        """Hear that the file is written up to here; where that is less than before, anew."""
        self._begun = min(self._begun, position)
        if position - self._begun >= _STEP_BYTES:
            begin(self._descriptor, self._begun, position - self._begun)
            self._begun = position


def begin(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Begin to write a part of a file to the disk; with no length, up to its end."""
    if _sync_file_range:
        _sync_file_range(descriptor, offset, length, _WRITE)
