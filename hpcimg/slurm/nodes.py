"""Whether a job has several nodes, from Prolog's environment.

Imports nothing, because warm hits use it.
"""

_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


def together(environ: dict[str, str]) -> str:
    """Return a name, unique at the site, for a job of several nodes; "" for a job of one node.

    It is used in file names. If Slurm provides the restart count, a requeued job gets another
    name and may get another image.
    """
    nodes = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST", "")
    if "," not in nodes and "[" not in nodes:
        return ""
    cluster = "".join(c for c in environ.get("SLURM_CLUSTER_NAME", "") if c in _NAME)[:64]
    restarts = environ.get("SLURM_JOB_RESTART_COUNT", "")
    job = environ["SLURM_JOB_ID"]
    return f"{cluster}.{job}.{restarts if restarts.isdecimal() else 0}"
