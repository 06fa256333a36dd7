"""Which jobs are requeued, and their messages, with stand-ins for Slurm's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcimg.errors import CacheUnusable, HpcimgError, NotFound, Unreachable
from hpcimg.slurm import query, requeue
from hpcimg.slurm.requeue import Outcome, attempt

DOWN = Unreachable("h does not answer")


class Commands:
    """squeue and scontrol in PATH."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._asked = directory / "asked"
        self.squeue("12 12 N/A RUNNING")
        self.scontrol("")

    def squeue(self, output: str) -> None:
        self._write("squeue", f"cat <<'END'\n{output}\nEND")

    def scontrol(self, error: str) -> None:
        line = f"printf '%s\\n' '{error}' >&2; exit 1" if error else ""
        self._write("scontrol", f'echo "$@" >>{self._asked}\n{line}')

    @property
    def requeued(self) -> list[str]:
        lines = self._asked.read_text().splitlines() if self._asked.exists() else []
        return [line.removeprefix("requeue ") for line in lines]

    def _write(self, name: str, script: str) -> None:
        path = self._directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Commands(tmp_path)


def test_what_may_pass(commands: Commands) -> None:
    said = attempt("12", DOWN, restarts="0", limit=3)
    assert said == Outcome(True, "This job was requeued, 1 of 3 times.")
    assert commands.requeued == ["12"]


@pytest.mark.parametrize("error", [NotFound("x"), CacheUnusable("x"), HpcimgError("x")])
def test_what_does_not_pass(commands: Commands, error: HpcimgError) -> None:
    assert attempt("12", error, restarts="0", limit=3) == Outcome(False, "")
    assert commands.requeued == []


@pytest.mark.parametrize(
    ("restarts", "said"),
    [("3", "It was requeued 3 of 3 times."), ("4", "It was requeued 3 of 3 times."), ("", "")],
)
def test_the_limit(commands: Commands, restarts: str, said: str) -> None:
    assert attempt("12", DOWN, restarts=restarts, limit=3) == Outcome(False, said)
    assert attempt("12", DOWN, restarts="0", limit=0) == Outcome(False, "")
    assert commands.requeued == []


def test_one_task_of_an_array_and_not_all(commands: Commands) -> None:
    commands.squeue("11 12 0 RUNNING\n12 12 1 RUNNING")
    assert attempt("12", DOWN, restarts="0", limit=3).requeued
    assert attempt("11", DOWN, restarts="0", limit=3).requeued
    assert commands.requeued == ["12_1", "12_0"]


@pytest.mark.parametrize("state", ["PENDING", "COMPLETING", "CANCELLED", "REQUEUED"])
def test_a_job_that_does_not_start_here_is_left_alone(commands: Commands, state: str) -> None:
    commands.squeue(f"12 12 N/A {state}")
    assert attempt("12", DOWN, restarts="0", limit=3) == Outcome(False, "")
    assert commands.requeued == []


def test_another_node_came_first(commands: Commands) -> None:
    commands.scontrol("Job is pending execution for job 12")
    assert attempt("12", DOWN, restarts="1", limit=3, nodes="2").requeued


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Only batch jobs are accepted", "It was not requeued: Only batch jobs are accepted."),
        ("down\nand \x1b out", "It was not requeued: down and \\x1b out."),
    ],
)
def test_slurm_refuses(commands: Commands, error: str, said: str) -> None:
    commands.scontrol(error)
    assert attempt("12", DOWN, restarts="0", limit=3) == Outcome(False, said)


def test_without_slurm(commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    said = "It was not requeued: squeue is not installed, or not in PATH."
    assert attempt("12", DOWN, restarts="0", limit=3) == Outcome(False, said)


def test_slurm_that_hangs(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "_TIMEOUT_S", 0.1)
    commands._write("squeue", "exec sleep 60")
    said = "It was not requeued: slurmctld does not answer."
    assert attempt("12", DOWN, restarts="0", limit=3) == Outcome(False, said)


def test_slurm_in_a_directory_of_its_own(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    query.look_in("")
    query.look_in(str(tmp_path))
    assert attempt("12", DOWN, restarts="0", limit=3).requeued
    assert commands.requeued == ["12"]
