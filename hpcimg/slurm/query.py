"""Asking Slurm about a job, with pyslurm if it is installed, else with Slurm's commands.

Never on a cache hit, and not in Prolog or Epilog unless the site says so: a thousand nodes asking
slurmctld at once are a storm.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hpcimg.errors import HpcimgError, MissingTool, Unreachable
from hpcimg.slurm.features import Running
from hpcimg.slurm.planned import Planned

if TYPE_CHECKING:
    import subprocess

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
    """The queries that hpcimg needs. They raise Unreachable if Slurm does not answer."""

    def alive(self, job: str) -> bool:
        """Tell whether the job still has, or may get, an allocation."""

    def planned(self) -> list[Planned]:
        """Return the pending jobs with a planned start, in no particular order. A single query."""


def open_slurm() -> Slurm:
    """Return an implementation: pyslurm if it is installed, else Slurm's commands."""
    if importlib.util.find_spec("pyslurm") is None:
        return Commands()
    return PySlurm(Commands())


def look_in(directory: str) -> None:
    """Search this directory first for Slurm's commands; "" means only PATH."""
    if directory:
        os.environ["PATH"] = f"{directory}:{os.environ.get('PATH', os.defpath)}"


def run(
    argv: list[str], *, timeout_s: float = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; the caller checks its exit code.

    `env` is added to our environment. Raises MissingTool if it does not exist, Unreachable if it
    takes too long.
    """
    import subprocess  # few hooks ask Slurm

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


def complaint(stderr: str) -> str:
    """Return the reason from the error output of one of Slurm's commands: its last line."""
    return next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")


def running() -> list[Running]:
    """Return the running jobs, in no particular order. A single query. Raises as `run`."""
    return [Running(*row) for row in _rows("--states=running", fields=("%N", "%k"))]


def scontrol(*arguments: str) -> str:
    """Return scontrol's output. Raises as `run`, and Unreachable if it fails."""
    done = run(["scontrol", *arguments])
    if done.returncode:
        raise Unreachable(f"scontrol {arguments[0]} failed", why=complaint(done.stderr))
    return done.stdout


def _rows(which: str, *, fields: Sequence[str]) -> list[list[str]]:
    """Return fields of jobs, in squeue's spelling; only the last may contain anything."""
    # So that no user can write a comment that looks like another job's line.
    mark = f"{os.urandom(16).hex()}:"
    argv = ["squeue", "--noheader", which, f"--format={mark}{'|'.join(fields)}"]
    done = run(argv, env={"SLURM_TIME_FORMAT": "%s"})
    if done.returncode:
        raise Unreachable("slurmctld cannot be reached", why=complaint(done.stderr))
    rows = done.stdout.split(mark)[1:]
    return [row.removesuffix("\n").split("|", len(fields) - 1) for row in rows]


class Commands:
    """Slurm's own squeue."""

    def alive(self, job: str) -> bool:
        return any(state not in _ENDED for state in self._ask(job, "%T").split())

    def planned(self) -> list[Planned]:
        found = _rows("--start", fields=("%S", "%U", "%Y", "%k"))
        return [
            # Since 26.05 not "" before nodes are chosen.
            Planned(float(start), int(uid), "" if nodes == "(null)" else nodes, comment)
            for start, uid, nodes, comment in found
            if start.isdecimal()
        ]

    def _ask(self, job: str, field: str) -> str:
        """Return one field of the job, "" if Slurm does not know the job."""
        done = run(["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--format={field}"])
        if done.returncode and "Invalid job id" not in done.stderr:
            raise Unreachable("slurmctld cannot be reached", why=complaint(done.stderr))
        return done.stdout


class PySlurm:
    """The pyslurm package (extra `slurm`), release 25.11 and compatible ones.

    It runs in a process of its own. If it does not answer, for lack of a slurm.conf or with another
    release of Slurm, `otherwise` is used from then on.
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
        """Return its answer, None if there is none."""
        if not self._answers:
            return None
        try:
            argv = [sys.executable, "-I", "-c", _ASK, json.dumps(sys.path), *question]
            return json.loads(run(argv, timeout_s=_PYSLURM_S).stdout)
        except (HpcimgError, ValueError, TypeError):
            log.info("pyslurm does not answer: using Slurm's commands")
            self._answers = False
            return None
