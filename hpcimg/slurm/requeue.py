"""Putting a job back into the queue whose image may be had later.

This is asked from within Prolog: Slurm revokes the job's credential at once,
lets Prolog and Epilog run to their ends, and starts no task. The job then waits
for `AuthInfo=cred_expire` and a little before it is eligible again.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from hpcimg.errors import HpcimgError, TransientError, printable
from hpcimg.slurm import query

_TIMEOUT_S = 15  # of each of the two commands; Prolog's deadline may be over already
_SPREAD_S = 0.01  # for each node of the job, that not all of a thousand ask at once
_SPREAD_MAX_S = 10.0
# Only such a job is ours to requeue: one that was cancelled meanwhile would come back to life.
_STARTING = frozenset(("RUNNING", "CONFIGURING"))
# What scontrol says where a Prolog of the same job on another node came first.
_ALREADY = "pending execution"


class Outcome(NamedTuple):
    """Whether the job goes back into the queue, and what it is told of that, "" for nothing."""

    requeued: bool
    said: str


def attempt(
    job: str, error: HpcimgError, *, restarts: str, limit: int, nodes: str = "1"
) -> Outcome:
    """Requeue a job that failed with `error`, where that is of the transient class.

    `restarts` is SLURM_JOB_RESTART_COUNT and `nodes` SLURM_JOB_NUM_NODES; where
    Slurm does not say how often it was restarted, it is not requeued.
    """
    if not isinstance(error, TransientError) or not restarts.isdecimal():
        return Outcome(False, "")
    if int(restarts) >= limit:
        return Outcome(False, f"It was requeued {limit} of {limit} times." if limit else "")
    if nodes.isdecimal() and int(nodes) > 1:
        import random  # few jobs come here

        time.sleep(random.uniform(0, min(int(nodes) * _SPREAD_S, _SPREAD_MAX_S)))
    try:
        refusal = _requeue(job)
    except HpcimgError as trouble:
        refusal = trouble.brief
    if refusal is None:  # another node of the job came first, or somebody cancelled it
        return Outcome(False, "")
    if refusal:
        return Outcome(False, f"It was not requeued: {refusal}.")
    return Outcome(True, f"This job was requeued, {int(restarts) + 1} of {limit} times.")


def _requeue(job: str) -> str | None:
    """Return why Slurm refused, "" where it did not, None where the job does not start here.

    Raises Unreachable, MissingTool.
    """
    name, state = _look_up(job)
    if state not in _STARTING:
        return None
    done = query.run(["scontrol", "requeue", name], timeout_s=_TIMEOUT_S)
    if done.returncode == 0 or _ALREADY in done.stderr:
        return ""
    return printable(" ".join(done.stderr.split())) or f"scontrol ended with {done.returncode}"


def _look_up(job: str) -> tuple[str, str]:
    """Return the name by which scontrol knows this job alone, and its state.

    The number of one task of a job array is also that of the whole array.
    """
    argv = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%A %F %K %T"]
    for line in query.run(argv, timeout_s=_TIMEOUT_S).stdout.splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[0] == job:
            _, array, task, state = fields
            return (f"{array}_{task}" if task.isdecimal() else job), state
    return job, "RUNNING"  # squeue knows less than scontrol, which then says what is wrong
