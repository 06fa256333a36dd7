"""Whether a job has several nodes, as Prolog hears of it.

Imports nothing: the way to a warm hit uses it.
"""

_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


def together(environ: dict[str, str]) -> str:
    """Return a name of a job of several nodes that no other job of the site has; "" for one node.

    It is part of a file name. What a job that was requeued gets is open again, where Slurm
    says how often it was.
    """
    nodes = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST", "")
    if "," not in nodes and "[" not in nodes:
        return ""
    cluster = "".join(c for c in environ.get("SLURM_CLUSTER_NAME", "") if c in _NAME)[:64]
    restarts = environ.get("SLURM_JOB_RESTART_COUNT", "")
    job = environ["SLURM_JOB_ID"]
    return f"{cluster}.{job}.{restarts if restarts.isdecimal() else 0}"
