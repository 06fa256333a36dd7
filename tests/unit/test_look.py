"""The check of a mounted file: its result, its rights, and that it never blocks a job for long."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from hpcimg import look
from tests.parts.daemon import TIMEOUT_S

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to look as others")
SECOND = 1_000_000_000


@pytest.fixture
def path(open_directory: Path) -> Path:
    path = open_directory / "x.sif"
    path.write_bytes(b"1234")
    path.chmod(0o644)
    return path


def test_it_is_the_same_until_something_changes(path: Path) -> None:
    first = look.take(str(path), "")
    assert first == look.of(path.stat()) == look.take(str(path), "")
    path.read_bytes()
    assert look.take(str(path), "") == first


def test_what_changes_it(path: Path) -> None:
    seen = [look.take(str(path), "")]
    before = path.stat()

    def keep_the_date() -> None:
        os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
        seen.append(look.take(str(path), ""))

    path.write_bytes(b"5678")
    keep_the_date()
    path.with_name("new").write_bytes(b"5678")
    path.with_name("new").rename(path)
    keep_the_date()
    path.chmod(0o600)
    seen.append(look.take(str(path), ""))
    link = path.with_name("link")
    link.symlink_to(path)
    assert look.take(str(link), "") == seen[-1]
    other = path.with_name("other")
    other.write_bytes(b"5678")
    link.unlink()
    link.symlink_to(other)
    seen.append(look.take(str(link), ""))
    assert "" not in seen
    assert len(set(seen)) == len(seen)


def test_what_is_no_file(path: Path) -> None:
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    for other in (fifo, path.parent, path.with_name("none"), path / "x", "/dev/null", "relative"):
        assert look.take(str(other), "") == ""


@AS_ROOT
def test_whose_rights_it_has(path: Path) -> None:
    os.chown(path, 1, 2)
    seen = look.of(path.stat())
    everybody = look.rights_of(7, 7, ())
    assert look.take(str(path), everybody) == seen
    path.chmod(0o040)
    seen = look.of(path.stat())
    assert look.take(str(path), look.rights_of(7, 2, ())) == seen
    assert look.take(str(path), look.rights_of(7, 7, (3, 2))) == seen
    for rights in (everybody, look.rights_of(1, 1, ()), look.rights_of(7, 7, (3,))):
        assert look.take(str(path), rights) == ""
    path.chmod(0o444)
    path.parent.chmod(0o700)
    assert look.take(str(path), everybody) == ""


def test_a_file_system_that_does_not_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It blocks only the child."""
    monkeypatch.setattr(look, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(look, "_answer", lambda *_: signal.pause())
    began = time.monotonic()
    assert look.take(str(path), "") == ""
    assert time.monotonic() - began < TIMEOUT_S


def test_a_look_that_fails_says_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(look, "_answer", lambda *_: 1 / 0)
    assert look.take(str(path), "") == ""
    assert capfd.readouterr() == ("", "")
