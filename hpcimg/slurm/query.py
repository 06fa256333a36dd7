"""Asking Slurm about a job, by pyslurm where it is installed, else by its commands.

Never on the way to a hit, and not in Prolog or Epilog unless the site says so:
a thousand nodes asking slurmctld at once are a storm.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hpcimg.errors import HpcimgError, MissingTool, Unreachable
from hpcimg.slurm.features import Running
from hpcimg.slurm.planned import Planned

log = logging.getLogger(__name__)
_TIMEOUT_S = 30
_PYSLURM_S = 15
_ASK = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from hpcimg.slurm.pyslurmjobs import main; sys.exit(main())"
)
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

    def planned(self) -> list[Planned]:
        """Return the pending jobs whose start is planned, in no order. Asks once for all."""


def open_slurm() -> Slurm:
    """Return pyslurm's view where pyslurm is installed, else that of Slurm's commands."""
    if importlib.util.find_spec("pyslurm") is None:
        return Commands()
    return PySlurm(Commands())


def look_in(directory: str) -> None:
    """Look for Slurm's commands there first, "" for nowhere but in PATH."""
    if directory:
        os.environ["PATH"] = f"{directory}:{os.environ.get('PATH', os.defpath)}"


def run(
    argv: list[str], *, timeout_s: float = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; its exit code is the caller's to judge.

    `env` is what its environment has besides ours. Raises MissingTool where there is none,
    Unreachable where it takes too long.
    """
    try:
        return subprocess.run(
            argv,
            env={**os.environ, **(env or {})},
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


def running() -> list[Running]:
    """Return the running jobs, in no order. Asks once for all. Raises as `run`, and Unreachable."""
    return [Running(*row) for row in _rows("--states=running", fields=("%N", "%k"))]


def scontrol(*arguments: str) -> str:
    """Return what scontrol prints. Raises as `run`, and Unreachable where it fails."""
    done = run(["scontrol", *arguments])
    if done.returncode:
        raise Unreachable(f"scontrol {arguments[0]} failed", why=done.stderr.strip())
    return done.stdout


def _rows(which: str, *, fields: Sequence[str]) -> list[list[str]]:
    """Return fields of jobs, in squeue's spelling; the last of them may hold anything."""
    # No user can write a comment that looks like the line of another job.
    mark = f"{os.urandom(16).hex()}:"
    argv = ["squeue", "--noheader", which, f"--format={mark}{'|'.join(fields)}"]
    done = run(argv, env={"SLURM_TIME_FORMAT": "%s"})
    if done.returncode:
        raise Unreachable("slurmctld cannot be asked", why=done.stderr.strip())
    rows = done.stdout.split(mark)[1:]
    return [row.removesuffix("\n").split("|", len(fields) - 1) for row in rows]


class Commands:
    """Slurm's own squeue."""

    def alive(self, job: str) -> bool:
        return any(state not in _ENDED for state in self._ask(job, "%T").split())

    def planned(self) -> list[Planned]:
        found = _rows("--start", fields=("%S", "%U", "%Y", "%k"))
        return [
            Planned(float(start), int(uid), nodes, comment)
            for start, uid, nodes, comment in found
            if start.isdecimal()
        ]

    def _ask(self, job: str, field: str) -> str:
        """Return one field of the job, "" where Slurm knows no such job."""
        done = run(["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--format={field}"])
        if done.returncode and "Invalid job id" not in done.stderr:
            raise Unreachable("slurmctld cannot be asked", why=done.stderr.strip())
        return done.stdout


class PySlurm:
    """The pyslurm package (extra `slurm`), release 25.11 and its kin.

    It is asked in a process of its own. Where it does not answer, without a
    slurm.conf or beside another release of Slurm, `otherwise` is asked from then on.
    """

    def __init__(self, otherwise: Slurm) -> None:
        self._otherwise = otherwise
        self._answers = True

    def alive(self, job: str) -> bool:
        found = self._ask("state", job)
        if found is None:
            return self._otherwise.alive(job)
        return str(found) not in ("", *_ENDED)

    def planned(self) -> list[Planned]:
        found = self._ask("planned")
        if found is None:
            return self._otherwise.planned()
        return [Planned(*fields) for fields in found]

    def _ask(self, *question: str) -> Any:
        """Return what it tells, None without an answer."""
        if not self._answers:
            return None
        try:
            argv = [sys.executable, "-I", "-c", _ASK, json.dumps(sys.path), *question]
            return json.loads(run(argv, timeout_s=_PYSLURM_S).stdout)
        except (HpcimgError, ValueError, TypeError):
            log.info("pyslurm does not answer: Slurm's commands are asked")
            self._answers = False
            return None
