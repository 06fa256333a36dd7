"""Epilog's long way: after the job's leases are dropped, make room if it is needed.

It returns 0 whatever happens, since any other exit code makes Slurm drain the
node.
"""

from __future__ import annotations

import logging
import os

from hpcimg import journal, logs, node
from hpcimg.cache import evict, history
from hpcimg.config import load as config
from hpcimg.errors import HpcimgError
from hpcimg.slurm import jobfiles
from hpcimg.units import format_duration, format_size

log = logging.getLogger(__name__)
_TIME_S = 20.0  # the node is kept from its next job for so long, for eviction
_LIMIT_S = 60.0  # for all together, where a disk is slow


def limit_s() -> float:
    """Return for how long `main` may take at the most."""
    return _LIMIT_S


def too_late(limit_s: float) -> None:
    """Say that `main` did not end in time; the next Epilog goes on where it was."""
    logs.set_up("syslog", name="epilog", job=os.environ.get("SLURM_JOB_ID", ""))
    log.critical("not done in %s: a disk of this node may hang", format_duration(limit_s))


def main() -> int:
    """Sweep and evict; always return 0."""
    job = os.environ.get("SLURM_JOB_ID", "")
    logs.set_up("syslog", name="epilog", job=job)
    if not job.isdigit():
        log.error("SLURM_JOB_ID is not set: this is called by slurmd as Epilog")
        return 0
    try:
        conf = config.load()
        logs.set_up(conf.log_to, name="epilog", job=job)
        cache = node.open_cache(conf)
        # The short way did this, unless something was wrong with it; the directory went last.
        if os.path.lexists(cache.layout.job(job)):
            jobfiles.release(cache.layout, job)
        history.rotate(cache.layout)
        report = evict.trim(cache.layout, cache.limits, time_s=_TIME_S, in_full=False)
        if report.plan.wanted_bytes:
            log.info(
                "freed %s of %s (%s)",
                format_size(report.freed_bytes),
                format_size(report.plan.wanted_bytes),
                report.plan.describe(),
                extra=journal.fields(journal.EVICTED, bytes=report.freed_bytes),
            )
    except HpcimgError as error:
        log.error("%s", error)
    except Exception as error:
        log.error("unforeseen", exc_info=error)
    return 0
