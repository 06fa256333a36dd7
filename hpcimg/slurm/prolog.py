"""Prolog's slow path: stage the images that the job requests, and tell the job the result.

A failure is written to the job's task file; the job's own task prolog prints it and fails. If the
site wants it, the job is requeued after a transient failure, and Slurm drains a node that is at
fault. Otherwise this always returns 0, since any other exit code makes Slurm drain the node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator

from hpcimg import journal, logs, node, processes, stage
from hpcimg.cache import events, history, hot, trial
from hpcimg.cache.leader import Leader, Told
from hpcimg.cache.paths import Layout
from hpcimg.config import files as conffiles
from hpcimg.config import load as config
from hpcimg.config.keys import Config
from hpcimg.errors import (
    BadReference,
    CacheUnusable,
    DeadlinePassed,
    HpcimgError,
    foreseen,
    printable,
)
from hpcimg.fetch.contract import Request
from hpcimg.reference import told
from hpcimg.site import policy
from hpcimg.slurm import comment, hostlist, jobfiles, nodes, pyxis, query, requeue
from hpcimg.units import format_duration, format_size
from hpcimg.worker import starting
from hpcimg.worker.accounts import User

log = logging.getLogger(__name__)
_TELL_EVERY_S = 10.0
# After the deadline: to kill a worker, to ask Slurm for a requeue. With the default deadline this
# ends before Slurm's recommended timeouts.
_AFTER_S = 50.0
# The exit code for which the hook exits with 1; neither Python nor a shell uses it.
DRAIN = 43


def limit_s() -> float:
    """Return the maximum time that `main` may take: the deadline, and what follows it."""
    try:
        return config.load().deadline_s + _AFTER_S
    except HpcimgError:
        return _AFTER_S


def too_late(limit_s: float) -> None:
    """Tell the job that `main` did not end in time. Touches only the state directory."""
    job, uid = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_JOB_UID", "")
    logs.set_up("syslog", name="prolog", job=job)
    error = DeadlinePassed(
        "the images of this job were not ready in time",
        why=f"hpcimg took longer than {format_duration(limit_s)}: a disk of this node may hang",
        do="Tell the administrators: this node needs attention.",
    )
    late = jobfiles.Job(job, int(uid), [], started=time.time() - limit_s)
    log.critical("%s", error, extra=_told(error, late))
    _fail(late, error, str(error))


def main(*, came: float | None = None, leader: Leader | None = None) -> int:
    """Run Prolog for the job in the environment; return 0, or DRAIN if the node is at fault.

    `came`, a time.monotonic() value, is when the hook started, if that was earlier; other jobs may
    wait for what this one is the `leader` of.
    """
    came = time.monotonic() if came is None else came
    started = time.time() - (time.monotonic() - came)
    number, uid = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_JOB_UID", "")
    logs.set_up("syslog", name="prolog", job=number if number.isdigit() else "?")
    if not number.isdecimal() or not uid.isdecimal():  # not isdigit: int() rejects "²"
        log.error("SLURM_JOB_ID and SLURM_JOB_UID are not set: this is called by slurmd as Prolog")
        return 0
    job = jobfiles.Job(number, int(uid), [], started=started)
    conf: Config | None = None
    try:
        conf = config.load()
        logs.set_up(conf.log_to, name="prolog", job=number)
        query.look_in(conf.slurm_bin)
        _stage_all(conf, job, came, leader)
    except Exception as error:
        explained = error if isinstance(error, HpcimgError) else _unforeseen(error)
        log.error("%s", explained, extra=_told(explained, job))
        message = _requeued(conf, number, explained)
        _fail(job, explained, message)
        if conf and _at_fault(conf, explained):
            log.critical("Slurm is told to drain this node")
            return DRAIN
    finally:
        starting.end_early()
        if leader:
            leader.done()
    return 0


def _stage_all(conf: Config, job: jobfiles.Job, came: float, leader: Leader | None) -> None:
    """Stage the job's images and fill in `job.images`, as far as it gets. Raises HpcimgError."""
    deadline, images = came + conf.deadline_s, job.images
    wanted = comment.read(*(os.environ.get(name, "") for name in comment.VARIABLES))
    for_pyxis = pyxis.take_out(wanted.images, os.environ.get(pyxis.VARIABLE, ""))
    images += [jobfiles.Image(name, text) for name, text in wanted.images[: comment.MAX_IMAGES]]
    if wanted.problem:
        raise BadReference(wanted.problem, do=wanted.remedy)
    if wanted.missed[0]:
        raise _missed(conf, *wanted.missed)
    if conf.pyxis:
        images += [jobfiles.Image("", text, format=pyxis.FORMAT) for text in for_pyxis]
    if not images:
        return
    references = []
    for image in images:  # all are checked before the first is fetched
        references.append(policy.parse(conf, image.text))
        image.uri = references[-1].uri
    cache = node.open_cache(conf)
    # The directory first: the epilog looks for leases only if it exists.
    jobfiles.prepare(cache.layout, job.id)
    jobfiles.write_asked(cache.layout, job, process=processes.tag())
    together = nodes.together(dict(os.environ))
    of_job = _nodes()
    for image, reference in zip(images, references, strict=True):
        began = time.time()
        request = Request(
            reference, deadline, job.id, progress=_LoggedProgress(image.uri), text=image.text,
            nodes=of_job, node=os.environ.get("SLURMD_NODENAME", ""), together=together, came=came,
        )  # fmt: skip
        with _led(leader, image, conf, request) as request:
            staged = stage.stage(
                conf, cache, request, user=User(job.uid, _group()), image_format=image.format
            )
        image.key, image.path, image.source = staged.entry.key, staged.path, staged.how
        told = journal.fields(
            journal.STAGED, uri=image.uri, key=image.key, result=image.source,
            bytes=staged.entry.size_bytes, seconds=round(time.time() - began, 3),
        )  # fmt: skip
        log.info("%s is at %s (%s)", image.uri, image.path, image.source, extra=told)
    jobfiles.write_ready(cache.layout, job, links=wanted.links)


@contextlib.contextmanager
def _led(
    leader: Leader | None, image: jobfiles.Image, conf: Config, request: Request
) -> Iterator[Request]:
    """Report progress to the jobs that wait for this image, and wake them at the end."""
    if leader is None or leader.name != hot.name_of(image.text, image.format):
        yield request
        return
    leader.tell(
        Told(
            request.job,
            printable(image.uri),
            patience_s=conf.patience_s,
            deadline_s=conf.deadline_s,
        )
    )
    try:
        yield request._replace(goes_on=leader.goes_on)
    finally:
        leader.done()


def _missed(conf: Config, written: str, right: str) -> HpcimgError:
    """Return why a near miss requests no image."""
    try:
        policy.parse(conf, comment.split_name(right)[1])
    except HpcimgError as error:
        return error
    return BadReference(
        f"{told(written)!r} requests no image", why=f"did you mean {comment.MARK}{told(right)}"
    )


def _nodes() -> tuple[str, ...]:
    """Return the names of the job's nodes, none if Slurm does not provide them."""
    text = os.environ.get("SLURM_JOB_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    try:
        return hostlist.expand(text)
    except ValueError as error:
        log.warning("the nodes of the job are not known: %s", error)
        return ()


def _group() -> int | None:
    """Return the job's group as slurmctld knows it, for a user unknown to the node."""
    gid = os.environ.get("SLURM_JOB_GID", "")
    return int(gid) if gid.isdecimal() else None


class _LoggedProgress:
    """Logs the progress of a long fetch every few seconds."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._next = time.monotonic() + _TELL_EVERY_S

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _TELL_EVERY_S
        of = f" of {format_size(total)}" if total else ""
        log.info("%s: %s, %s%s", self._uri, phase, format_size(done), of)


def _told(error: HpcimgError, job: jobfiles.Job) -> dict[str, object]:
    """Return the journal's fields for a failure."""
    return journal.fields(
        journal.FAILED, result="failed", error=type(error).__name__, uri=_uri_of_failed(job.images),
        seconds=round(time.time() - job.started, 3), **{"class": error.kind},
    )  # fmt: skip


def _uri_of_failed(images: list[jobfiles.Image]) -> str:
    """Return the first image that was not staged, "" if any was not parsed.

    All are parsed before the first is fetched. A text that was not parsed may contain a password.
    """
    unread = any(not image.uri for image in images)
    return "" if unread else next((image.uri for image in images if not image.path), "")


def _unforeseen(error: Exception) -> HpcimgError:
    log.error("unforeseen", exc_info=error)
    return foreseen(error)


def _requeued(conf: Config | None, job: str, error: HpcimgError) -> str:
    """Requeue the job if the site says so; return the message for the job."""
    if conf is None or conf.on_transient != "requeue":
        return str(error)
    outcome = requeue.attempt(
        job,
        error,
        restarts=os.environ.get("SLURM_JOB_RESTART_COUNT", ""),
        limit=conf.max_requeues,
        nodes=os.environ.get("SLURM_JOB_NUM_NODES", ""),
    )
    if outcome.said:
        told = journal.fields(journal.REQUEUED if outcome.requeued else "")
        log.warning("%s", outcome.said, extra=told)
    if not outcome.requeued:
        return f"{error} {outcome.said}".rstrip()
    events.record(Layout(conf.cache_path, conf.state_path).events, "requeue", job=job)
    # It will be queued again, so it need not be submitted again.
    return f"{error.brief}. {outcome.said}"


def _at_fault(conf: Config, error: HpcimgError) -> bool:
    """Tell whether the node should be drained for this error.

    Not for an error in a file that all nodes share, nor for a package or program that only some
    references need. And not for the error alone, which may come from a process that read what a
    user named: the directories must be found faulty. A full disk does not count, since any user can
    cause that.
    """
    if conf.on_node_fault != "drain":
        return False
    if not isinstance(error, CacheUnusable):
        return False
    return trial.faulty(Layout(conf.cache_path, conf.state_path))


def _fail(job: jobfiles.Job, error: HpcimgError, message: str) -> None:
    """Record why the job cannot run, for the job and for operators; if that fails, log it."""
    try:
        layout = _layout_at_any_cost()
        jobfiles.prepare(layout, job.id)
        jobfiles.write_failed(
            layout, job, message=message, error=type(error).__name__, kind=error.kind
        )
        uri, took_s = _uri_of_failed(job.images), time.time() - job.started
        history.record_failure(layout, error, job=job.id, uri=uri, took_s=took_s)
    except Exception as worse:
        log.critical("the job cannot be informed: %s", worse, exc_info=worse)


def _layout_at_any_cost() -> Layout:
    """Return where the task prolog will look, even if the configuration is invalid."""
    try:
        files = conffiles.read_what_can_be(conffiles.main_file())
    except OSError:
        files = []
    return Layout(*conffiles.directories(files))
