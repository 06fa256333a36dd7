"""What Slurm has to say about this node: the hooks, and jobs that hold leases."""

from __future__ import annotations

import glob
import re

from hpcimg import plainfile
from hpcimg.cache import lease
from hpcimg.cache.paths import Layout
from hpcimg.errors import HpcimgError, Unreachable
from hpcimg.health import NOTE, OK, PROBLEM, Finding
from hpcimg.slurm import jobfiles, query

HOOKS = ("Prolog", "TaskProlog", "Epilog")
_SETTING = re.compile(r"(\w+)(?:\[\d+\])?\s+= (.*)")


def hooks() -> list[Finding]:
    """Check that slurm.conf names all three hooks, or scripts that call them."""
    try:
        done = query.run(["scontrol", "show", "config"])
        if done.returncode:
            raise Unreachable("slurmctld cannot be asked", why=" ".join(done.stderr.split()))
    except HpcimgError as error:
        return [Finding("hooks", NOTE, "not looked for", error.brief)]
    return [_hook(name, configured(done.stdout, name)) for name in HOOKS]


def configured(listing: str, name: str) -> list[str]:
    """Return the values of a setting in the output of `scontrol show config`, none if not set."""
    found = [match[2].strip() for match in _SETTING.finditer(listing) if match[1] == name]
    return [value for value in found if value not in ("", "(null)")]


def _hook(name: str, patterns: list[str]) -> Finding:
    wanted = f"hpcimg-{'task-prolog' if name == 'TaskProlog' else name.lower()}"
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern)) or [pattern]]
    if any(wanted in path or _calls(path, wanted) for path in paths):
        return Finding("hooks", OK, f"{name} is {', '.join(patterns)}")
    why = f"it is {', '.join(patterns)}" if patterns else "it is not set"
    do = f"Set {name} in slurm.conf as in etc/slurm.conf.example."
    return Finding("hooks", PROBLEM, f"{name} of slurm.conf does not call {wanted}", why, do)


def _calls(path: str, wanted: str) -> bool:
    """Tell whether a site's own script names the hook."""
    try:
        return wanted.encode() in plainfile.read(path)
    except (OSError, ValueError):
        return False


def leases(layout: Layout) -> Finding:
    """Check that every job with a lease or files here is one that Slurm knows."""
    jobs = sorted(lease.all_jobs(layout) | jobfiles.all_jobs(layout), key=lease.by_number)
    try:
        slurm = query.open_slurm()
        ended = [job for job in jobs if not slurm.alive(job)]
    except HpcimgError as error:
        return Finding("leases", NOTE, f"{len(jobs)} jobs were not looked up", error.brief)
    if not ended:
        return Finding("leases", OK, f"{len(jobs)} jobs with images, Slurm knows them all")
    what = f"jobs that ended still hold images: {' '.join(ended)}"
    return Finding("leases", PROBLEM, what, "their Epilog did not run", "Run `hpcimg gc`.")
