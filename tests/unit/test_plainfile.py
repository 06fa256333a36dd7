"""Reading small files, and what others may put in their place."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from hpcimg import plainfile


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text\n")
    assert plainfile.read(str(path)) == b"text\n"
    (tmp_path / "link").symlink_to(path)
    assert plainfile.read_text(str(tmp_path / "link")) == "text\n"


def test_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        plainfile.read(str(tmp_path / "none"))
    with pytest.raises(IsADirectoryError):
        plainfile.read(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")  # nobody writes to it
    for path in (str(tmp_path / "fifo"), "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            plainfile.read(path)
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        plainfile.read(str(tmp_path / "large"))
    (tmp_path / "large").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        plainfile.read_text(str(tmp_path / "large"))


def test_a_lease_is_not_waited_for(tmp_path: Path) -> None:
    """Whoever has one is asked to give it up, and has /proc/sys/fs/lease-break-time to do so."""
    path = tmp_path / "file"
    path.write_text("text")
    with path.open() as file:
        fcntl.fcntl(file, fcntl.F_SETSIG, 28)  # SIGWINCH, which does nothing
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(BlockingIOError):
            plainfile.read(str(path))
