"""What Slurm says about this node: the hooks, its timeouts, and jobs that hold leases."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable

from hpcimg import plainfile
from hpcimg.cache import lease
from hpcimg.cache.paths import Layout
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError
from hpcimg.health import NOTE, OK, PROBLEM, Finding
from hpcimg.slurm import conf as slurmconf
from hpcimg.slurm import jobfiles, query
from hpcimg.slurm.conf import Settings
from hpcimg.units import format_duration

HOOKS = ("Prolog", "TaskProlog", "Epilog")
_MESSAGE_TIMEOUT_S = 100.0  # above this, Slurm itself warns
_ENROOT = "/etc/enroot"
# Releases that start TaskProlog where the container's mounts are missing (pyxis issue 163).
_NO_TASK_PROLOG = re.compile(r"24\.11\.[0-6]\b|25\.05\.[01]\b")


def slurm(config: Config) -> list[Finding]:
    """Run all checks of slurm.conf."""
    try:
        settings = slurmconf.settings()
    except HpcimgError as error:
        return [Finding("hooks", NOTE, "not checked", error.brief)]
    found = [_hook(name, settings.all(name)) for name in HOOKS]
    return [*found, *timers(settings, config.deadline_s), *pyxis(settings, config.state_path)]


def helper(config: Config) -> list[Finding]:
    """Where images are staged for pyxis: look whether running jobs can ask for theirs."""
    path = Layout(config.cache_path, config.state_path).socket
    if not config.pyxis:
        return []
    if os.path.exists(path):
        return [Finding("socket", OK, f"running jobs ask for images at {path}")]
    why = "enroot imports by itself what an srun --container-image within a job names"
    return [Finding("socket", NOTE, f"there is no {path}", why, "Enable hpcimg.socket.")]


def _hook(name: str, patterns: list[str]) -> Finding:
    wanted = f"hpcimg-{'task-prolog' if name == 'TaskProlog' else name.lower()}"
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern)) or [pattern]]
    if any(wanted in path or _calls(path, wanted) for path in paths):
        return Finding("hooks", OK, f"{name} is {', '.join(patterns)}")
    why = f"it is {', '.join(patterns)}" if patterns else "it is not set"
    do = f"Set {name} in slurm.conf as in etc/slurm.conf.example."
    return Finding("hooks", PROBLEM, f"{name} of slurm.conf does not call {wanted}", why, do)


def _calls(path: str, wanted: str) -> bool:
    """Tell whether a site's own script calls the hook."""
    try:
        return wanted.encode() in plainfile.read(path)
    except (OSError, ValueError):
        return False


def timers(settings: Settings, deadline_s: float) -> list[Finding]:
    """Compare Prolog's timeouts in slurm.conf with the deadline of staging."""
    found = [*_flags(settings.one("PrologFlags")), _prolog_timeout(settings, deadline_s)]
    held = format_duration(deadline_s)
    # The default is 10 s.
    start_s = settings.seconds("BatchStartTimeout") or 10.0
    if start_s < deadline_s:
        what = f"BatchStartTimeout is {start_s:.0f} s, and a job is held for up to {held}"
        why = "srun fails, or the job is requeued, if staging on a node takes longer"
        found.append(_raise("BatchStartTimeout", what, why, deadline_s))
    else:
        found.append(Finding("timers", OK, f"BatchStartTimeout is {start_s:.0f} s"))
    message_s = settings.seconds("MessageTimeout") or 10.0
    if message_s > _MESSAGE_TIMEOUT_S:
        what = f"MessageTimeout is {message_s:.0f} s"
        why = "slurmctld waits that long for dead nodes; BatchStartTimeout is enough"
        found.append(Finding("timers", NOTE, what, why))
    else:
        found.append(Finding("timers", OK, f"MessageTimeout is {message_s:.0f} s"))
    return found


def _prolog_timeout(settings: Settings, deadline_s: float) -> Finding:
    """Check the timeout that kills Prolog; since 25.05 it may have its own setting."""
    name = "PrologTimeout" if settings.seconds("PrologTimeout") else "PrologEpilogTimeout"
    limit_s = settings.seconds(name)
    if limit_s is None:
        why = "a hook that hangs, for example on a dead disk, would hold its job forever"
        return Finding("timers", NOTE, "PrologEpilogTimeout is not set", why)
    if limit_s <= deadline_s:
        what = (
            f"{name} is {limit_s:.0f} s, and a job is held for up to {format_duration(deadline_s)}"
        )
        why = "Slurm kills a Prolog that is still staging, and drains the node"
        return _raise(name, what, why, deadline_s)
    return Finding("timers", OK, f"{name} is {limit_s:.0f} s")


def _raise(name: str, what: str, why: str, deadline_s: float) -> Finding:
    do = f"Set {name} above {deadline_s:.0f} in slurm.conf, or lower [stage] deadline."
    return Finding("timers", PROBLEM, what, why, do)


def _flags(text: str) -> Iterable[Finding]:
    flags = {flag.strip().lower() for flag in text.split(",")}
    if not flags & {"alloc", "contain", "x11", "deferbatch"}:  # the others imply alloc
        what, why = "PrologFlags has no Alloc", "Prolog would run when a step starts, not before"
        do = "Set PrologFlags=Alloc in slurm.conf."
        yield Finding("timers", PROBLEM, what, why, do)
    for flag, why in (
        ("nohold", "salloc and srun start before the image is staged"),
        ("serial", "a job that is staging blocks all others on its node"),
    ):
        if flag in flags:
            yield Finding("timers", NOTE, f"PrologFlags has {flag}", why)


def pyxis(settings: Settings, state: str, *, enroot: str = _ENROOT) -> list[Finding]:
    """If tasks run in pyxis containers: check that TaskProlog and its files exist in them."""
    stack = settings.one("PlugStackConfig") or os.path.join(
        os.path.dirname(os.environ.get("SLURM_CONF") or slurmconf.DEFAULT_FILE), "plugstack.conf"
    )
    if not any("spank_pyxis" in line for line in slurmconf.plugins(stack)):
        return []
    task_prologs = settings.all("TaskProlog")
    if not task_prologs:
        return []
    version = settings.one("SLURM_VERSION")
    if _NO_TASK_PROLOG.match(version):
        what = f"Slurm {version} cannot start TaskProlog in containers of pyxis"
        do = "Every task with --container-image fails: upgrade to 24.11.7, 25.05.2 or newer."
        return [Finding("pyxis", PROBLEM, what, do=do)]
    mounted = [
        words[0]
        for path in glob.glob(f"{enroot}/mounts.d/*.fstab")
        for line in slurmconf.lines(path)
        if (words := line.split())
    ]
    missing = [path for path in (*task_prologs, state) if not _within(path, mounted)]
    if not missing:
        return [Finding("pyxis", OK, "enroot mounts TaskProlog and its files in containers")]
    what = f"enroot does not mount {' and '.join(missing)} in containers"
    why = "tasks with --container-image fail: TaskProlog is started in the container"
    do = f"Install 60-hpcimg.fstab in {enroot}/mounts.d, as howto-pyxis.md says."
    return [Finding("pyxis", PROBLEM, what, why, do)]


def _within(path: str, mounted: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(f"{at.rstrip('/')}/") for at in mounted)


def leases(layout: Layout) -> Finding:
    """Check that Slurm knows every job with a lease or files here."""
    jobs = sorted(lease.all_jobs(layout) | jobfiles.all_jobs(layout), key=lease.by_number)
    try:
        asked = query.open_slurm()
        ended = [job for job in jobs if not asked.alive(job)]
    except HpcimgError as error:
        return Finding("leases", NOTE, f"{len(jobs)} jobs were not looked up", error.brief)
    if not ended:
        return Finding("leases", OK, f"{len(jobs)} jobs with images, Slurm knows them all")
    what = f"jobs that ended still hold images: {' '.join(ended)}"
    return Finding("leases", PROBLEM, what, "their Epilog did not run", "Run `hpcimg gc`.")
