"""Distinguishing a running process from one that has ended."""

from __future__ import annotations

import os
import posix
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg import processes
from hpcimg.processes import alive, is_older, open_pidfd, tag, wait
from tests.parts.daemon import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.processes import tag;"
    "print(tag(), flush=True); sys.stdin.read()"
)


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process, and its tag."""
    command = [sys.executable, "-I", "-S", "-c", CODE, str(ROOT)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_tag_names_this_process_and_has_no_dot() -> None:
    assert tag() == tag()
    assert "." not in tag()
    assert f"-{os.getpid()}-" in tag()
    assert alive(tag())
    assert alive(f"{tag()}.0a1b.name.json")


def test_another_process_until_it_ends(other: tuple[subprocess.Popen[str], str]) -> None:
    process, name = other
    assert name != tag()
    assert alive(f"{name}.x")
    process.kill()
    # Dead and not yet waited for: a zombie, which holds nothing any more.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    assert not alive(f"{name}.x")
    process.wait()
    assert not alive(f"{name}.x")


def test_a_pid_that_was_given_to_another_process() -> None:
    boot, pid, started = tag().split("-")
    assert not alive(f"{boot}-{pid}-{int(started) - 1}.x")


def test_a_pid_from_before_a_reboot() -> None:
    boot, pid, started = tag().split("-")
    assert not alive(f"{boot[::-1]}x-{pid}-{started}.x")


@pytest.mark.parametrize(
    "name", ["", ".", ".x", "x", "a-b-c.x", "a-1", "a--", "a-\N{SUPERSCRIPT TWO}-x", "-1-1"]
)
def test_a_name_without_a_tag_belongs_to_nobody(name: str) -> None:
    assert not alive(name)


@given(st.text(max_size=50))
def test_any_name(name: str) -> None:
    assert not alive(name)


def test_which_of_two_processes_is_older() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert is_older(os.getpid(), child.pid)
        assert is_older(child.pid, child.pid)
        assert not is_older(child.pid, 1)
        child.kill()
    assert not is_older(child.pid, os.getpid())


def no_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: int) -> int:
        raise OSError("a kernel before 5.3")

    monkeypatch.setattr(processes, "open_pidfd", missing)


def pidfds_by_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Python that was built on an old system, such as conda's."""
    monkeypatch.delattr(posix, "pidfd_open")


@pytest.mark.parametrize("old", [None, no_pidfds, pidfds_by_system_call])
def test_waiting_for_a_child(
    old: Callable[[pytest.MonkeyPatch], None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        old(monkeypatch)
    with subprocess.Popen(["sh", "-c", "read x; exit 7"], stdin=subprocess.PIPE) as child:
        assert wait(child.pid, 0) is None
        assert wait(child.pid, 0.05) is None
        assert child.stdin
        child.stdin.write(b"x\n")
        child.stdin.flush()
        status = wait(child.pid, TIMEOUT_S)
        child.returncode = 7  # it has been waited for
    assert status is not None
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_pidfd_by_the_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pidfds_by_system_call(monkeypatch)
    with subprocess.Popen(["sleep", "60"]) as child:
        pidfd = open_pidfd(child.pid)
        assert not os.get_inheritable(pidfd)
        assert not select.select([pidfd], [], [], 0)[0]
        child.kill()
        assert select.select([pidfd], [], [], TIMEOUT_S)[0]
    os.close(pidfd)
    with pytest.raises(ProcessLookupError):
        open_pidfd(child.pid)
