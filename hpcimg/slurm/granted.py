"""Stage an image for a running job: the helper's work once the caller is identified."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import NamedTuple

from hpcimg import journal, logs, node, stage
from hpcimg.cache import history
from hpcimg.cache.ensure import Staged
from hpcimg.cache.paths import Layout
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError, foreseen
from hpcimg.fetch.contract import Request
from hpcimg.site import policy
from hpcimg.slurm import admission, jobfiles, pyxis
from hpcimg.slurm.peer import Peer
from hpcimg.worker.accounts import User

log = logging.getLogger(__name__)


def answer(conf: Config, job: str, who: Peer, uri: str, *, for_pyxis: bool) -> dict[str, object]:
    """Stage an image and lease it to a job of this node; return the answer for the caller.

    A failure is an answer too; it is logged and recorded as one of Prolog's would be.
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
        user = User(who.uid, who.gid)

        def bring() -> _Brought:
            staged = stage.stage(conf, cache, request, user=user, image_format=image_format)
            return _Brought(staged.entry.key, staged)

        brought = admission.leased(cache.layout, job, who, bring)
        assert brought
        staged = brought.staged
        if for_pyxis:
            with contextlib.suppress(FileNotFoundError):  # Epilog runs: no step follows
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
        history.rotate(layout)  # a job can repeat failing requests, and no Epilog runs meanwhile
        return {"error": explained.to_dict()}
    entry = staged.entry
    told = journal.fields(
        journal.STAGED, uri=wanted.uri, key=entry.key, result=staged.how, bytes=entry.size_bytes,
        seconds=round(time.time() - started, 3),
    )  # fmt: skip
    log.info("%s is at %s (%s)", wanted.uri, staged.path, staged.how, extra=told)
    return {"path": staged.path, "key": entry.key, "bytes": entry.size_bytes, "how": staged.how}


class _Brought(NamedTuple):
    """A staged image, and the key of its lease."""

    key: str
    staged: Staged
