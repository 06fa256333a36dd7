"""Fetching, converting and verifying in processes without rights, and checking after them.

The parent counts and digests the bytes itself, from the files, while the worker
writes them: nothing that the worker says about content is believed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from hpcimg.errors import from_dict
from hpcimg.fetch.contract import (
    Arrived,
    Blob,
    Converting,
    Declined,
    Fetched,
    Gathered,
    Offer,
    Offered,
    Outcome,
    Progress,
    Unchanged,
)
from hpcimg.fetch.settings import Settings
from hpcimg.reference import Reference
from hpcimg.worker.accounts import Account
from hpcimg.worker.process import Worker

log = logging.getLogger(__name__)
_CHUNK = 1 << 20


def fetch(
    reference: Reference,
    descriptor: int,
    *,
    account: Account | None,
    settings: Settings,
    deadline: float,
    image_bytes: int,
    validator: str,
    offered: Offered,
    arrived: Arrived,
    progress: Progress,
) -> Outcome:
    """Fetch in a worker that runs as `account` (None: as we do).

    `image_bytes` is how large an image may be here.
    The rest is as `hpcimg.fetch.contract.Fetch` says. The worker is gone when this
    returns or raises. Raises DeadlinePassed when `deadline`, a time.monotonic()
    value, passes.
    """
    request = {
        "reference": list(reference),
        "settings": settings._asdict(),
        "validator": validator,
        "image_bytes": image_bytes,
    }
    files: dict[int | None, _Follower] = {None: _Follower(descriptor)}
    with Worker(reference.uri, "fetch", deadline=deadline) as worker:
        try:
            _begin(worker, account, request, [descriptor])
            outcome = _follow(worker, files, offered, progress)
        finally:
            worker.end()  # from here on nobody writes the files
            for number, file in files.items():
                if number is not None:
                    arrived(number, file.finish())
    return files[None].finish() if outcome is None else outcome


def convert(
    uri: str,
    descriptor: int,
    *,
    account: Account | None,
    settings: dict[str, object],
    deadline: float,
    image_bytes: int,
    layers: Sequence[int],
    progress: Converting,
) -> Fetched:
    """Convert in a worker that runs as `account` (None: as we do).

    `settings` are what `hpcimg.convert.Work` has besides the files and the uri.
    The rest is as `hpcimg.fetch.contract.Convert` says, with the others as in `fetch`.
    """
    with Worker(uri, "convert", deadline=deadline) as worker:
        try:
            if account is not None:  # its tools open the file by a name of their own
                os.fchown(descriptor, account.uid, -1)
            _begin(
                worker,
                account,
                {"settings": settings, "image_bytes": image_bytes},
                [descriptor, *layers],
            )
            done, total, beside = 0, None, 0
            while (said := _hear(worker))["say"] != "done":
                if said["say"] == "progress":
                    done, total, beside = said["bytes"], said["total"], said["beside"]
                progress(done, total, beside)
        finally:
            worker.end()
            if account is not None:
                os.fchown(descriptor, os.geteuid(), -1)
    return _Follower(descriptor).finish()


def verify(
    uri: str,
    descriptor: int,
    *,
    account: Account | None,
    settings: dict[str, object],
    deadline: float,
    image_bytes: int,
) -> None:
    """Ask in a worker that runs as `account` whether the site trusts the image in the file.

    It may read the file and nothing more. `settings` are what `hpcimg.image.verify.Work` has
    besides the file and the uri. Raises HpcimgError.
    """
    file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if account is not None:  # by its group: an owner could let itself write
            os.fchown(descriptor, -1, account.gid)
            os.fchmod(descriptor, 0o440)
        with Worker(uri, "verify", deadline=deadline) as worker:
            request = {"settings": settings, "image_bytes": image_bytes}
            _begin(worker, account, request, [file])
            while _hear(worker)["say"] != "done":
                pass
    finally:
        os.close(file)
        if account is not None:
            os.fchown(descriptor, -1, os.getegid())
            os.fchmod(descriptor, 0o600)


def _begin(
    worker: Worker, account: Account | None, request: dict[str, Any], files: Sequence[int]
) -> None:
    worker.tell(files, uri=worker.uri, work=worker.doing, account=account, **request)


def _follow(
    worker: Worker,
    files: dict[int | None, _Follower],
    offered: Offered,
    progress: Progress,
) -> Outcome | None:
    """Hear a fetch until it is done; return None where it left the whole image in its file.

    `files` are those that it writes: None is the image's, others are of layers.
    """
    phase, total, in_layers = "asking", None, False
    while True:
        said = _hear(worker)
        match said.pop("say"):
            case "offer":
                layers = tuple(Blob(*layer) for layer in said.pop("layers"))
                in_layers = bool(layers)
                total = _offer(worker, files, offered, Offer(**said, layers=layers))
                continue
            case "sha256":
                worker.tell(sha256=files[said["layer"]].finish().sha256)
                continue
            case "progress":
                files[said["layer"]].follow(int(said["bytes"]))
                phase, total = "fetching", total if in_layers else said["total"]
            case "rewind":
                files[said["layer"]].rewind()
            case "retry":
                log.warning("%s: next try in %.1f s: %s", worker.uri, said["wait_s"], said["why"])
                phase = "waiting"
            case "done" if said.get("declined"):
                return Declined()
            case "done" if said["unchanged"]:
                return Unchanged()
            case "done":
                return Gathered() if in_layers else None
        progress(phase, sum(file.position for file in files.values()), total)


def _hear(worker: Worker) -> dict[str, Any]:
    """Return what the worker says next, or that it is silent. Raises the error that it met."""
    said = worker.hear() or {"say": "nothing"}
    if said["say"] == "error":
        if "traceback" in said:
            log.error("%s", said["traceback"])
        raise from_dict(said)
    return said


def _offer(
    worker: Worker, files: dict[int | None, _Follower], offered: Offered, offer: Offer
) -> int | None:
    """Pass an offer on, and the answer back; return the bytes that are to come."""
    image = files[None]
    files.clear()  # those of an earlier offer are closed by now
    files[None] = image
    answer = offered(offer)
    wanted = {n: file for n, file in enumerate(answer or ()) if file is not None}
    files.update({number: _Follower(file) for number, file in wanted.items()})
    worker.tell(list(wanted.values()), wanted=answer is not None, layers=list(wanted))
    if offer.layers:
        return sum(offer.layers[number].size_bytes for number in wanted)
    return offer.size_bytes


class _Follower:
    """Digests a file behind the process that writes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.rewind()

    def rewind(self) -> None:
        self.position = 0
        self._digest = hashlib.sha256()

    def follow(self, end: int) -> None:
        """Read on up to `end`, or to where the file ends now."""
        while self.position < end:
            data = os.pread(self._descriptor, min(_CHUNK, end - self.position), self.position)
            if not data:
                return
            self._digest.update(data)
            self.position += len(data)

    def finish(self) -> Fetched:
        """Return what is in the file up to its end."""
        self.follow(os.fstat(self._descriptor).st_size)
        return Fetched(self.position, self._digest.hexdigest())
