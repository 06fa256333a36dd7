"""Staging for a running job, at its own request: what the helper does once it knows who asks."""

from __future__ import annotations

import logging
import time

from hpcimg import journal, logs, node, stage
from hpcimg.cache import history, lease
from hpcimg.cache.ensure import Staged
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError, Interrupted, NotAllowed, foreseen
from hpcimg.fetch.contract import Request
from hpcimg.site import policy
from hpcimg.slurm import jobfiles, jobs, pyxis
from hpcimg.slurm.peer import Peer
from hpcimg.worker.accounts import User

log = logging.getLogger(__name__)
IMAGES = 256  # that one job may have leased when it asks for another one


def answer(conf: Config, job: str, who: Peer, uri: str, *, for_pyxis: bool) -> dict[str, object]:
    """Stage an image for a job of this node and lease it to the job; return what it is told.

    A failure is an answer, too, and is logged and kept among the events as one of Prolog's.
    """
    logs.set_up(conf.log_to, name="helper", job=job)
    if for_pyxis and not conf.pyxis:
        return {"declined": True}
    started, shown = time.time(), ""
    try:
        wanted = policy.parse(conf, uri)
        shown = wanted.uri
        cache = node.open_cache(conf)
        request = Request(wanted, time.monotonic() + conf.deadline_s, job, text=uri)
        image_format = pyxis.FORMAT if for_pyxis else ""
        staged = _leased(conf, cache, request, who, image_format)
        if for_pyxis:
            jobfiles.add_for_pyxis(cache.layout, job, who.uid, uri, staged.path)
    except Exception as error:
        if not isinstance(error, HpcimgError):
            log.error("unforeseen", exc_info=error)
        explained = foreseen(error)
        took_s = time.time() - started
        told = journal.fields(
            journal.FAILED, result="failed", error=type(explained).__name__, uri=shown,
            seconds=round(took_s, 3), **{"class": explained.kind},
        )  # fmt: skip
        log.error("%s", explained, extra=told)
        layout = Layout(conf.cache_path, conf.state_path)
        history.record_failure(layout, explained, job=job, uri=shown, took_s=took_s)
        return {"error": explained.to_dict()}
    entry = staged.entry
    told = journal.fields(
        journal.STAGED, uri=wanted.uri, key=entry.key, result=staged.how, bytes=entry.size_bytes,
        seconds=round(time.time() - started, 3),
    )  # fmt: skip
    log.info("%s is at %s (%s)", wanted.uri, staged.path, staged.how, extra=told)
    return {"path": staged.path, "key": entry.key, "bytes": entry.size_bytes, "how": staged.how}


def _leased(conf: Config, cache: Cache, request: Request, who: Peer, image_format: str) -> Staged:
    """Stage the image for a job that is not over, so that Epilog comes after the lease."""
    layout, job = cache.layout, request.job
    record = jobs.record(layout, job)
    if record is not None and record["uid"] != who.uid:
        raise NotAllowed(f"job {job} is another user's")
    if lease.count(layout, job) >= IMAGES:
        raise NotAllowed(f"job {job} has {IMAGES} images, which is the limit for one job")
    over = Interrupted(f"job {job} is over on this node")
    while True:
        try:
            admitted = jobfiles.admit(layout, job, who.uid)
        except FileNotFoundError:
            raise over from None
        if not who.alive():
            # Epilog may have gone before there was a directory.
            if admitted.made and not lease.count(layout, job):
                jobfiles.release(layout, job)
            raise over
        user = User(who.uid, who.gid)
        staged = stage.stage(conf, cache, request, user=user, image_format=image_format)
        if jobfiles.is_open(layout, job, admitted.number):
            return staged
        lease.give_back(layout, staged.entry.key, job)
        if not who.alive():
            raise over
        # Who asked is alive, and so is the job: another one of its processes was not, just above.
