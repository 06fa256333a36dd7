"""Locks between real processes: waiting, giving up, and holders that die."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcimg import locks
from hpcimg.errors import CacheUnusable, DeadlinePassed
from hpcimg.locks import held
from tests.parts.daemon import TIMEOUT_S

# Holds the lock until its standard input ends.
HOLDER = (
    "import sys, time; from hpcimg.locks import held\n"
    "with held(sys.argv[1], deadline=time.monotonic() + 10, waiting=lambda s: None):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "image.lock")


@pytest.fixture
def hold(path: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start another process that holds the lock when this returns."""
    with ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            holder = subprocess.Popen(
                [sys.executable, "-c", HOLDER, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(holder)
            stack.callback(holder.kill)
            assert holder.stdout
            assert holder.stdout.readline() == "held\n"
            return holder

        yield start


def soon() -> float:
    return time.monotonic() + TIMEOUT_S


def never(_: float) -> None:
    raise AssertionError("there was nothing to wait for")


def test_free(path: str) -> None:
    for _ in range(2):
        with held(path, deadline=soon(), waiting=never) as waited:
            assert not waited
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_deadline_that_has_passed_still_takes_a_free_lock(path: str) -> None:
    with held(path, deadline=time.monotonic() - 1, waiting=never) as waited:
        assert not waited


@pytest.mark.parametrize("end", ["release", "kill"])
def test_waits_until_the_holder_lets_go_or_dies(
    path: str, hold: Callable[[], subprocess.Popen[str]], end: str
) -> None:
    holder = hold()
    assert holder.stdin

    def waiting(seconds: float) -> None:
        # Only now: so this process surely had to wait.
        told.append(seconds)
        if end == "kill":
            holder.kill()
        else:
            holder.stdin.close()

    told: list[float] = []
    with held(path, deadline=soon(), waiting=waiting) as waited:
        assert waited
        assert holder.wait(TIMEOUT_S) == (-9 if end == "kill" else 0)
    assert told
    assert 0 <= told[0] < 5


def test_is_told_again_and_again_while_it_waits(
    path: str, hold: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_TELL_EVERY_S", 0.02)
    holder = hold()
    told: list[float] = []

    def waiting(seconds: float) -> None:
        told.append(seconds)
        if len(told) == 3:
            holder.kill()

    with held(path, deadline=soon(), waiting=waiting):
        pass
    assert told[:3] == sorted(told[:3])


def test_gives_up_at_its_deadline(path: str, hold: Callable[[], subprocess.Popen[str]]) -> None:
    hold()
    began = time.monotonic()
    with (
        pytest.raises(DeadlinePassed, match="another job on this node was still fetching"),
        held(path, deadline=began + 0.2, waiting=lambda _: None),
    ):
        raise AssertionError("held by two")
    assert 0.2 <= time.monotonic() - began < TIMEOUT_S


def test_a_lock_file_that_was_left_behind_is_no_obstacle(
    path: str, hold: Callable[[], subprocess.Popen[str]]
) -> None:
    holder = hold()
    before = os.stat(path).st_ino
    holder.kill()
    holder.wait()
    with held(path, deadline=soon(), waiting=never) as waited:
        assert not waited
    # A new file would be another lock than the one that a waiter has open.
    assert os.stat(path).st_ino == before


def test_who_removes_lock_files_leaves_one_that_is_held(
    path: str, hold: Callable[[], subprocess.Popen[str]]
) -> None:
    holder = hold()
    locks.remove_free(path)
    assert os.path.exists(path)
    holder.kill()
    holder.wait()
    locks.remove_free(path)
    assert not os.path.exists(path)
    locks.remove_free(path)


def test_a_lock_whose_file_went_while_it_was_waited_for_is_none(path: str) -> None:
    """A waiting process opens the file before it locks it."""
    flock, opened = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and not opened:
            opened.append(os.fstat(descriptor).st_ino)
            locks.remove_free(path)
        flock(descriptor, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with held(path, deadline=soon(), waiting=lambda _: None):
            held_file = os.stat(path)
            with pytest.raises(DeadlinePassed):
                held(path, deadline=0.0, waiting=lambda _: None).__enter__()
    assert opened
    assert held_file.st_nlink == 1


def test_threads_of_one_process_exclude_each_other(path: str) -> None:
    got = threading.Event()

    def second() -> None:
        with held(path, deadline=soon(), waiting=lambda _: waits.set()):
            got.set()

    waits = threading.Event()
    thread = threading.Thread(target=second)
    with held(path, deadline=soon(), waiting=never):
        thread.start()
        assert waits.wait(TIMEOUT_S)
        assert not got.is_set()
    thread.join(TIMEOUT_S)
    assert got.is_set()


def test_is_let_go_when_the_work_fails(path: str) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        held(path, deadline=soon(), waiting=never),
    ):
        raise ZeroDivisionError
    with held(path, deadline=time.monotonic(), waiting=never) as waited:
        assert not waited


def test_what_cannot_be_locked(path: str) -> None:
    os.mkdir(path)
    with pytest.raises(CacheUnusable, match=r"image\.lock cannot be locked"):
        held(path, deadline=soon(), waiting=never).__enter__()


def test_a_file_system_without_flock(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(CacheUnusable, match="cannot be locked"):
        held(path, deadline=soon(), waiting=never).__enter__()
