"""What pyslurm says of jobs, asked in a process of its own.

libslurm ends the process that imported it where it finds no slurm.conf, after
trying for a minute: no `except` sees that. So this is run as a program, by
`hpcimg.slurm.query`, which has a limit and Slurm's commands to go on with.
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    """Print as JSON what the last arguments ask for.

    `state JOB` is the job's state, "" for one that is unknown; `planned` the pending jobs whose
    start is planned, with the fields of `hpcimg.slurm.planned.Planned`.
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
