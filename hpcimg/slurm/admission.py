"""Lease images to a running job, only while its Epilog is certain to run later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from hpcimg.cache import lease
from hpcimg.cache.paths import Layout
from hpcimg.errors import Interrupted, NotAllowed
from hpcimg.slurm import jobfiles, jobs
from hpcimg.slurm.peer import Peer

IMAGES = 256  # the most images that a job may hold; then it gets no more


class Keyed(Protocol):
    """Something that a job holds a lease on."""

    @property
    def key(self) -> str: ...


T = TypeVar("T", bound=Keyed)


def leased(layout: Layout, job: str, who: Peer, bring: Callable[[], T | None]) -> T | None:
    """Return the result of `bring`, which leases an image to the job, or returns None.

    Raises NotAllowed, Interrupted if the job has ended, and what `bring` raises.
    """
    record = jobs.record(layout, job)
    if record is not None and record["uid"] != who.uid:
        raise NotAllowed(f"job {job} is another user's")
    if lease.count(layout, job) >= IMAGES:
        raise NotAllowed(f"job {job} has {IMAGES} images, which is the limit for one job")
    over = Interrupted(f"job {job} has ended on this node")
    while True:
        try:
            admitted = jobfiles.admit(layout, job, who.uid)
        except FileNotFoundError:
            raise over from None
        if not who.alive():
            # Epilog may have run before the directory existed.
            if admitted.made and not lease.count(layout, job):
                jobfiles.release(layout, job)
            raise over
        found = bring()
        if found is None or jobfiles.is_open(layout, job, admitted.number):
            return found
        lease.give_back(layout, found.key, job)
        if not who.alive():
            raise over
        # The caller is alive, and so is the job: a request whose caller had ended removed the
        # directory, as above.
