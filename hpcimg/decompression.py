"""Libraries that decompress. They are optional, apart from Python's own.

Imported as a whole: later, a process may be unable to read Python's own files.
"""

from __future__ import annotations

import importlib
import zlib
from typing import Any


def _library(name: str) -> Any:
    """Return a module, None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# Part of Python since 3.14; the second is a backport.
zstd = _library("compression.zstd") or _library("backports.zstd")
# Twice as fast as zlib, with the same interface as far as it is used here.
gzip = _library("isal.isal_zlib") or zlib

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
