"""Asking pyslurm about jobs, in a process of its own.

If libslurm finds no slurm.conf, it ends the process that imported it, after trying for a minute: no
`except` can catch that. So `hpcimg.slurm.query` runs this as a program, with a time limit and
Slurm's commands as a fallback.
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    """Answer the question in the last arguments as JSON.

    `state JOB` is the job's state, "" if it is unknown; `planned` are the pending jobs with a
    planned start, with the fields of `hpcimg.slurm.planned.Planned`.
    """
    if sys.argv[-1] == "planned":
        print(json.dumps(_planned()))
    else:
        print(json.dumps(_state(int(sys.argv[-1]))))
    return 0


def _state(job: int) -> str:
    import pyslurm

    try:
        return str(pyslurm.Job.load(job).state)
    except pyslurm.RPCError as error:
        if "Invalid job id" not in str(error):
            raise
        return ""


def _planned() -> list[tuple[float, int, str, str]]:
    import pyslurm

    return [
        (float(job.start_time), int(job.user_id), str(job.scheduled_nodes or ""), job.comment or "")
        for job in pyslurm.Jobs.load().values()
        if job.state == "PENDING" and job.start_time
    ]
