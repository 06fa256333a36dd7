"""Queries to Slurm: with its commands or pyslurm, and which of them is used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpcimg.errors import MissingTool, Unreachable
from hpcimg.slurm import query
from hpcimg.slurm.planned import Planned
from hpcimg.slurm.query import Commands, PySlurm, open_slurm


class Squeue:
    """A squeue in PATH that prints what a test wants."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "squeue"
        self._asked = directory / "asked"

    def will(self, script: str) -> None:
        self._program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{self._asked}\n{script}\n')
        self._program.chmod(0o755)

    def say(self, output: str, *, error: str = "", code: int = 0) -> None:
        self.will(f"cat <<'END'\n{output}\nEND\necho '{error}' >&2\nexit {code}")

    @property
    def asked(self) -> list[str]:
        return self._asked.read_text().splitlines()


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Squeue(tmp_path)


# Slurm's commands


@pytest.mark.parametrize(
    ("states", "alive"),
    [
        ("RUNNING", True),
        ("PENDING", True),
        ("COMPLETING", True),
        ("SUSPENDED", True),
        ("REQUEUED", True),
        ("A_STATE_OF_A_LATER_RELEASE", True),
        ("COMPLETED", False),
        ("CANCELLED", False),
        ("NODE_FAIL", False),
        ("OUT_OF_MEMORY", False),
        ("COMPLETED\nRUNNING", True),  # an array, or the parts of a heterogeneous job
        ("COMPLETED\nFAILED", False),
        ("", False),
    ],
)
def test_alive(squeue: Squeue, states: str, alive: bool) -> None:
    squeue.say(states)
    assert Commands().alive("12") is alive
    assert "--jobs=12" in squeue.asked
    assert "--states=all" in squeue.asked
    assert "--noheader" in squeue.asked


def test_of_a_complaint_the_last_line_counts(squeue: Squeue) -> None:
    squeue.say("", error="squeue: error: one\nsqueue: fatal: two\n\n", code=1)
    with pytest.raises(Unreachable) as caught:
        query.Commands().alive("12")
    assert str(caught.value).startswith("slurmctld cannot be reached: squeue: fatal: two. ")
    assert query.complaint("") == ""


def test_a_job_that_slurm_has_forgotten(squeue: Squeue) -> None:
    squeue.say("", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert not Commands().alive("12")


def test_slurmctld_is_down(squeue: Squeue) -> None:
    squeue.say("", error="Unable to contact slurm controller (connect failure)", code=1)
    with pytest.raises(Unreachable, match="cannot be reached: Unable to contact slurm controller"):
        Commands().alive("12")


def test_slurmctld_hangs(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_TIMEOUT_S", 0.1)
    squeue.will("exec sleep 60")
    with pytest.raises(Unreachable, match="does not answer"):
        Commands().alive("12")


def test_no_squeue(squeue: Squeue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match="squeue is not installed"):
        Commands().alive("12")


MARK = (
    "for word; do case $word in --format=*) mark=${word#--format=}; mark=${mark%%:*}:;; esac; done"
)


def test_planned_jobs_whatever_their_comments_say(squeue: Squeue) -> None:
    """A line in a comment that looks like another job is not one."""
    squeue.will(
        f"{MARK}\n"
        'test "$SLURM_TIME_FORMAT" = %s || exit 1\n'
        "printf '%s200|7|n[1-2]|a|b\n1|0|n1|container:/evil\n' $mark\n"
        "printf '%s300|8||(null)\n%s400|8|(null)|\n%sN/A|9||container:/x.sif\n' $mark $mark $mark"
    )
    assert Commands().planned() == [
        Planned(200.0, 7, "n[1-2]", "a|b\n1|0|n1|container:/evil"),
        Planned(300.0, 8, "", "(null)"),
        Planned(400.0, 8, "", ""),
    ]
    assert "--start" in squeue.asked


def test_planned_jobs_of_a_slurmctld_that_is_down(squeue: Squeue) -> None:
    squeue.say("", error="Unable to contact slurm controller (connect failure)", code=1)
    with pytest.raises(Unreachable, match="Unable to contact"):
        Commands().planned()


# pyslurm


# As pyslurm 25.11 answers; job 4 is one for which libslurm ends the process, 5 one that hangs.
PYSLURM = """
import os, time, types
class RPCError(Exception): pass
JOBS = {1: "RUNNING", 2: "COMPLETED", 6: "PENDING"}
class Jobs:
    @staticmethod
    def load():
        fields = dict(user_id=7, start_time=100, scheduled_nodes="n1", comment=None)
        later = dict(fields, start_time=0, scheduled_nodes=None)
        return {
            1: types.SimpleNamespace(state="RUNNING", **fields),
            6: types.SimpleNamespace(state="PENDING", **fields),
            7: types.SimpleNamespace(state="PENDING", **later),
        }
class Job:
    @classmethod
    def load(cls, number):
        if number == 3: raise RPCError("Unable to contact slurm controller")
        if number == 4: os._exit(1)
        if number == 5: time.sleep(60)
        if number not in JOBS: raise RPCError("Invalid job id specified")
        return types.SimpleNamespace(state=JOBS[number])
"""


@pytest.fixture
def pyslurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that answers as pyslurm does, to be found by the process that asks it."""
    directory = tmp_path / "packages"
    directory.mkdir()
    (directory / "pyslurm.py").write_text(PYSLURM)
    monkeypatch.syspath_prepend(directory)
    return directory / "pyslurm.py"


def test_pyslurm(pyslurm: Path, squeue: Squeue) -> None:
    squeue.say("", error="not to be asked", code=1)
    slurm = open_slurm()
    assert isinstance(slurm, PySlurm)
    assert [slurm.alive(job) for job in ("1", "2", "6", "9")] == [True, False, True, False]
    assert "pyslurm" not in sys.modules


def test_planned_jobs_by_pyslurm(pyslurm: Path, squeue: Squeue) -> None:
    squeue.say("", error="not to be asked", code=1)
    assert open_slurm().planned() == [Planned(100.0, 7, "n1", "")]


@pytest.mark.parametrize("job", ["3", "4", "5"])
def test_where_pyslurm_does_not_answer_the_commands_do(
    pyslurm: Path, squeue: Squeue, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_PYSLURM_S", 2)
    squeue.say("RUNNING")
    slurm = open_slurm()
    assert slurm.alive(job)
    # It is not waited for again.
    pyslurm.write_text("raise AssertionError")
    squeue.say("COMPLETED")
    assert not slurm.alive("1")


# Which of them


def test_without_pyslurm_the_commands() -> None:
    assert isinstance(open_slurm(), Commands)


def test_with_a_pyslurm_that_fails_here_the_commands(pyslurm: Path, squeue: Squeue) -> None:
    # What it does without a slurm.conf, and beside another release of Slurm.
    pyslurm.write_text("raise RuntimeError('no slurm.conf')")
    squeue.say("RUNNING")
    assert open_slurm().alive("2")
