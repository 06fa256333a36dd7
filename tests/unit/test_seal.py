"""Sealed files, which nobody can write to any more."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from hpcimg.errors import Interrupted
from hpcimg.worker import seal

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A file that is open to be written."""
    monkeypatch.setattr(seal, "_LATE_S", 0.1)
    return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)


def test_a_sealed_file_can_be_read(file: int) -> None:
    os.write(file, b"x")
    assert seal.has_leases(os.open(f"/proc/self/fd/{file}", os.O_RDONLY)) is False  # by us
    seal.seal(file, uri="x")
    assert os.pread(file, 10, 0) == b"x"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(file, b"x")
    assert not os.get_inheritable(file)
    assert seal.has_leases(file)


@pytest.mark.parametrize("how", ["descriptor", "mapping"])
def test_a_file_that_somebody_can_write(file: int, how: str) -> None:
    os.write(file, b"x")
    other = os.dup(file)
    mapped = mmap.mmap(other, 1)
    if how == "mapping":  # it needs no descriptor
        os.close(other)
    else:
        mapped.close()
    with pytest.raises(Interrupted, match="x was not kept"):
        seal.seal(file, uri="x")
    mapped.close()
    if how == "descriptor":
        os.close(other)
    seal.seal(file, uri="x")


@AS_ROOT
def test_a_file_that_its_owner_opened_to_all(file: int) -> None:
    os.fchown(file, 1, 1)
    os.fchmod(file, 0o666)
    seal.seal(file, uri="x")
    seen = os.fstat(file)
    assert (seen.st_uid, seen.st_mode & 0o777) == (0, 0o600)
