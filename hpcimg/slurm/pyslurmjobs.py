"""What pyslurm says of one job, asked in a process of its own.

libslurm ends the process that imported it where it finds no slurm.conf, after
trying for a minute: no `except` sees that. So this is run as a program, by
`hpcimg.slurm.query`, which has a limit and Slurm's commands to go on with.
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    """Print the state of the job in the last argument as JSON, null for one that is unknown."""
    import pyslurm

    try:
        found = pyslurm.Job.load(int(sys.argv[-1]))
    except pyslurm.RPCError as error:
        if "Invalid job id" not in str(error):
            raise
        print("null")
        return 0
    print(json.dumps(str(found.state)))
    return 0
