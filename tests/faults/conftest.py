"""What the tests with faults share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_SHM = "/dev/shm"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder where flushing a file costs nothing, if this machine has one."""
    where = _SHM if os.access(_SHM, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hpcimg-test-", dir=where) as made:
        yield Path(made)
