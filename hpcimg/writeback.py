"""Starting to write a file to disk early, so that fsync(2) at the end finds little to do.

By itself the kernel starts when memory is full of dirty pages, or after half a minute.
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
    """Asks the kernel to start writing a file's data to disk, without waiting for it.

    This guarantees nothing: fsync(2) does.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begun = 0

    def reached(self, position: int) -> None:
        """Record that the file is written up to here; a smaller position means it was restarted."""
        self._begun = min(self._begun, position)
        if position - self._begun >= _STEP_BYTES:
            begin(self._descriptor, self._begun, position - self._begun)
            self._begun = position


def begin(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Start writing a range of a file to disk; without a length, up to its end."""
    if _sync_file_range:
        _sync_file_range(descriptor, offset, length, _WRITE)
