"""Fixtures of the fault tests, some of them shared with the integration tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disk import CannotMount, Disk, small_disk
from tests.integration.conftest import make_sif, sif, start, url
from tests.parts.node import Node

__all__ = ["make_sif", "memory", "sif", "start", "url"]

_SHM = "/dev/shm"
# This includes the journal, meta files and locks.
_DISK = "24M"


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory where flushing a file costs nothing, if this machine has one."""
    where = _SHM if os.access(_SHM, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hpcimg-test-", dir=where) as made:
        yield Path(made)


@pytest.fixture
def disk(node: Node) -> Iterator[Disk]:
    """The disk of the node's cache; its state is elsewhere, as on a tmpfs."""
    try:
        with small_disk(node.cache, size=_DISK) as disk:
            yield disk
    except CannotMount as error:
        pytest.skip(str(error))
