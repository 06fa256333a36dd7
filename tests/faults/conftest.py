"""What the tests of faults share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the unprivileged account can read too; pytest's own it cannot."""
    with tempfile.TemporaryDirectory(prefix="hpcimg-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
