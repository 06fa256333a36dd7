"""Functions of the C library that Python lacks, or lacks where it was built on an old system.

Imports only os and ctypes: it is used before a worker starts.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False  # importing typing takes longer than starting a worker
if TYPE_CHECKING:
    from typing import Any


def call(name: str, *arguments: Any) -> int:
    """Call a function that returns -1 and sets errno when it fails. Raises OSError."""
    result: int = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
