"""The jobs of this node and their requests, from their records."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from hpcimg import processes
from hpcimg.cache import lease
from hpcimg.cache.paths import Layout
from hpcimg.slurm import jobfiles


def record(layout: Layout, job: str) -> dict[str, Any] | None:
    """Return the record of a job, None if there is none that we can read."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"{layout.job(job)}/record.json", encoding="utf-8") as file:
            fields = json.load(file)
        return fields if isinstance(fields, dict) else None
    return None


def held(fields: dict[str, Any]) -> bool:
    """Tell from a job's record whether its Prolog is still running."""
    return fields["state"] == jobfiles.STAGING and processes.alive(str(fields["process"]))


def waiting(layout: Layout, staging: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the jobs that are held without fetching anything themselves, longest first.

    Only root sees them; others get an empty list. `staging` are the downloads in progress, some of
    which they wait for.
    """
    fetching = {str(work["job"]) for work in staging}
    found: list[dict[str, Any]] = []
    try:
        here = jobfiles.all_jobs(layout)
    except PermissionError:  # only root can list the jobs
        return []
    for job in sorted(here - fetching, key=lease.by_number):
        fields = record(layout, job)
        if fields is None or not held(fields):
            continue
        uris = [str(image["uri"]) for image in fields["images"]]
        found.append({
            "job": job,
            "since": float(fields["started"]),
            "uris": uris,
            "for_jobs": sorted({str(work["job"]) for work in staging if work["uri"] in uris}),
        })  # fmt: skip
    return sorted(found, key=lambda waiter: float(waiter["since"]))
