"""Distinguishing a running process from one that has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.processes import alive, is_older, tag

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
