"""Select the images of jobs that will start soon. No side effects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hpcimg.slurm import comment, hostlist


class Planned(NamedTuple):
    """A pending job, with its planned start (a Unix time) and nodes."""

    start: float
    uid: int
    nodes: str
    comment: str


class Limits(NamedTuple):
    """Limits: seconds to look ahead, images per user, images in total."""

    within_s: float
    per_user: int
    images: int


def choose(jobs: Iterable[Planned], limits: Limits, *, now: float, node: str = "") -> list[str]:
    """Return the references to fetch, the soonest first.

    With `node`, only those of jobs that are planned on that node. Comments are written by users:
    those that Prolog would refuse are skipped.
    """
    found: list[str] = []
    of_user: dict[int, int] = {}
    for job in sorted(jobs, key=lambda job: job.start):
        if job.start > now + limits.within_s or not _is_on(node, job.nodes):
            continue
        wanted = comment.read(job.comment)
        if wanted.problem or wanted.missed[0]:
            continue
        for _, text in wanted.images:
            if text in found or of_user.get(job.uid, 0) >= limits.per_user:
                continue
            if len(found) >= limits.images:
                return found
            found.append(text)
            of_user[job.uid] = of_user.get(job.uid, 0) + 1
    return found


def _is_on(node: str, nodes: str) -> bool:
    if not node:
        return True
    try:
        return node in hostlist.expand(nodes)
    except ValueError:
        return False
