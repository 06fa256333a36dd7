"""Asking Slurm about a job, by pyslurm where it is installed, else by its commands.

Never on the way to a hit, and not in Prolog or Epilog unless the site says so:
a thousand nodes asking slurmctld at once are a storm.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any, Protocol

from hpcimg.errors import MissingTool, Unreachable

_TIMEOUT_S = 30
_ENDED = frozenset(
    (
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED",
        "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
    )
)  # fmt: skip


class Slurm(Protocol):
    """What hpcimg asks Slurm. It raises Unreachable where Slurm does not answer."""

    def alive(self, job: str) -> bool:
        """Tell whether the job still has, or may get, an allocation."""


def open_slurm() -> Slurm:
    """Return pyslurm's view where pyslurm works here, else that of Slurm's commands."""
    try:
        import pyslurm
    except Exception:  # it also fails on a missing slurm.conf or another Slurm release
        return Commands()
    return PySlurm(pyslurm)


def look_in(directory: str) -> None:
    """Look for Slurm's commands there first, "" for nowhere but in PATH."""
    if directory:
        os.environ["PATH"] = f"{directory}:{os.environ.get('PATH', os.defpath)}"


def run(argv: list[str], *, timeout_s: float = 0) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; its exit code is the caller's to judge.

    Raises MissingTool where there is none, Unreachable where it takes too long.
    """
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s or _TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise MissingTool(f"{argv[0]} is not installed, or not in PATH") from None
    except subprocess.TimeoutExpired:
        raise Unreachable("slurmctld does not answer") from None


class Commands:
    """Slurm's own squeue."""

    def alive(self, job: str) -> bool:
        return any(state not in _ENDED for state in self._ask(job, "%T").split())

    def _ask(self, job: str, field: str) -> str:
        """Return one field of the job, "" where Slurm knows no such job."""
        done = run(["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--format={field}"])
        if done.returncode and "Invalid job id" not in done.stderr:
            raise Unreachable("slurmctld cannot be asked", why=done.stderr.strip())
        return done.stdout


class PySlurm:
    """The pyslurm package (extra `slurm`), release 25.11 and its kin."""

    def __init__(self, pyslurm: Any) -> None:
        self._pyslurm = pyslurm

    def alive(self, job: str) -> bool:
        found = self._load(job)
        return found is not None and str(found.state) not in _ENDED

    def _load(self, job: str) -> Any:
        try:
            return self._pyslurm.Job.load(int(job))
        except self._pyslurm.RPCError as error:
            if "Invalid job id" in str(error):
                return None
            raise Unreachable("slurmctld cannot be asked", why=str(error)) from None
