"""Prolog's long way: stage what the job asks for, and tell the job what came of it.

It returns 0 whatever happens, since any other exit code makes Slurm drain the
node: a failure is written into the job's task file, and the job's own task
prolog prints it and fails.
"""

from __future__ import annotations

import logging
import os
import time

from hpcimg import conffiles, config, logs, stage
from hpcimg.cache.layout import Layout
from hpcimg.config import Config
from hpcimg.errors import BadReference, Bug, HpcimgError, from_os_error
from hpcimg.slurm import comment, jobfiles, query
from hpcimg.units import format_size

log = logging.getLogger(__name__)
_TELL_EVERY_S = 10.0


def main() -> int:
    """Run Prolog for the job in the environment; always return 0."""
    started = time.time()
    job, uid = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_JOB_UID", "")
    logs.set_up("syslog", name="prolog", job=job if job.isdigit() else "?")
    if not job.isdecimal() or not uid.isdecimal():  # not isdigit: int() takes no "²"
        log.error("SLURM_JOB_ID and SLURM_JOB_UID are not set: this is called by slurmd as Prolog")
        return 0
    images: list[jobfiles.Image] = []
    try:
        conf = config.load()
        logs.set_up(conf.log_to, name="prolog", job=job)
        _stage_all(conf, job, int(uid), images, started)
    except Exception as error:
        explained = error if isinstance(error, HpcimgError) else _unforeseen(error)
        log.error("%s", explained)
        _fail(job, int(uid), images, explained, started)
    return 0


def _stage_all(
    conf: Config, job: str, uid: int, images: list[jobfiles.Image], started: float
) -> None:
    deadline = time.monotonic() + conf.deadline_s
    written = os.environ.get("SLURM_JOB_COMMENT", "")
    if not written and conf.comment_from == "query":
        written = query.open_slurm().comment(job)
    wanted = comment.wanted(written)
    if not wanted:
        return
    images += [jobfiles.Image(name, text) for name, text in wanted[: comment.MAX_IMAGES]]
    if problem := comment.problem(wanted):
        raise BadReference(problem)
    for image in images:  # all are looked at before the first is fetched
        image.uri = stage.parse(conf, image.text).uri
    cache = stage.open_cache(conf)
    # The folder comes first: the epilog looks for leases where there is one.
    jobfiles.prepare(cache.layout, job)
    for image in images:
        staged = stage.stage(
            conf,
            cache,
            image.text,
            deadline=deadline,
            job=job,
            uid=uid,
            progress=_LoggedProgress(image.uri),
        )
        image.key, image.path, image.source = staged.entry.key, staged.path, staged.how
        log.info("%s is at %s (%s)", image.uri, image.path, image.source)
    jobfiles.write_ready(cache.layout, job, uid, images, started=started)


class _LoggedProgress:
    """Says in the log every few seconds how far a long fetch is."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._next = time.monotonic() + _TELL_EVERY_S

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _TELL_EVERY_S
        of = f" of {format_size(total)}" if total else ""
        log.info("%s: %s, %s%s", self._uri, phase, format_size(done), of)


def _unforeseen(error: Exception) -> HpcimgError:
    log.error("unforeseen", exc_info=error)
    if isinstance(error, OSError):
        return from_os_error(error)
    return Bug("hpcimg failed on this node", why=f"{type(error).__name__}: {error}")


def _fail(
    job: str, uid: int, images: list[jobfiles.Image], error: HpcimgError, started: float
) -> None:
    """Write why the job cannot run; where even that fails, the log has it."""
    try:
        layout = _layout_at_any_cost()
        jobfiles.prepare(layout, job)
        jobfiles.write_failed(
            layout,
            job,
            uid,
            images,
            started=started,
            message=str(error),
            error=type(error).__name__,
            kind=error.kind,
        )
    except Exception as worse:
        log.critical("the job cannot be told: %s", worse, exc_info=worse)


def _layout_at_any_cost() -> Layout:
    """Return where the task prolog will look, even where the configuration is wrong."""
    try:
        files = conffiles.read_what_can_be(conffiles.main_file())
    except OSError:
        files = []
    return Layout(*conffiles.folders(files))
