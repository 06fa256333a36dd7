"""Asking pyslurm about one job, in a process of its own.

If libslurm finds no slurm.conf, it ends the process that imported it, after trying for a minute: no
`except` can catch that. So `hpcimg.slurm.query` runs this as a program, with a time limit and
Slurm's commands as a fallback.
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    """Print the state of the job in the last argument as JSON, null if it is unknown."""
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
