"""Which images the jobs that are to start soon will ask for. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hpcimg.slurm import comment, hostlist


class Planned(NamedTuple):
    """A pending job, and when (a Unix time) and where Slurm plans to start it."""

    start: float
    uid: int
    nodes: str
    comment: str


class Limits(NamedTuple):
    """How much is looked ahead: seconds, images of one user, images in all."""

    within_s: float
    per_user: int
    images: int


def choose(jobs: Iterable[Planned], limits: Limits, *, now: float, node: str = "") -> list[str]:
    """Return the references to bring, those that are wanted first at the beginning.

    With `node`, of jobs that are planned there alone. Comments are their users' to write: one
    that Prolog would refuse asks for nothing here.
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
