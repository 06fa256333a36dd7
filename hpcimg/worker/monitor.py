"""Fetching, converting and verifying in processes without rights, and checking after them.

The parent counts and digests the bytes itself, from the files, while the worker
writes them: nothing that the worker says about content is believed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence

from hpcimg.errors import Bug, from_dict
from hpcimg.fetch.contract import (
    Converting,
    Declined,
    Fetched,
    Gathered,
    Listener,
    Offer,
    Outcome,
    Unchanged,
)
from hpcimg.worker import protocol
from hpcimg.worker.process import Sandbox, Worker

log = logging.getLogger(__name__)
_CHUNK = 1 << 20


def fetch(order: protocol.Fetch, descriptor: int, listener: Listener, sandbox: Sandbox) -> Outcome:
    """Fetch in a worker what the order names, as `hpcimg.fetch.contract.Way.fetch` says.

    The worker is gone when this returns or raises. Raises DeadlinePassed too.
    """
    files: dict[int | None, _Follower] = {None: _Follower(descriptor)}
    with Worker(order, sandbox) as worker:
        try:
            worker.begin([descriptor])
            outcome = _follow(worker, files, listener)
        finally:
            worker.end()  # from here on nobody writes the files
            for number, file in files.items():
                if number is not None:
                    listener.arrived(number, file.finish())
    return files[None].finish() if outcome is None else outcome


def convert(
    order: protocol.Convert, files: Sequence[int], progress: Converting, sandbox: Sandbox
) -> Fetched:
    """Convert in a worker; `files` are the empty output and the layers, the lowest first.

    The rest is as `hpcimg.fetch.contract.Way.convert` says.
    """
    output = files[0]
    account = sandbox.account
    with Worker(order, sandbox) as worker:
        try:
            if account is not None:  # its tools open the file by a name of their own
                os.fchown(output, account.uid, -1)
            worker.begin(files)
            said = protocol.Converted(0, None, 0)
            while not isinstance(report := _hear(worker), protocol.Done):
                if isinstance(report, protocol.Converted):
                    said = report
                progress(*said)
        finally:
            worker.end()
            if account is not None:
                os.fchown(output, os.geteuid(), -1)
    return _Follower(output).finish()


def verify(order: protocol.Verify, descriptor: int, sandbox: Sandbox) -> None:
    """Ask in a worker whether the site trusts the image in the file. Raises HpcimgError.

    The worker may read the file and nothing more.
    """
    account = sandbox.account
    file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if account is not None:  # by its group: an owner could let itself write
            os.fchown(descriptor, -1, account.gid)
            os.fchmod(descriptor, 0o440)
        with Worker(order, sandbox) as worker:
            worker.begin([file])
            while not isinstance(_hear(worker), protocol.Done):
                pass
    finally:
        os.close(file)
        if account is not None:
            os.fchown(descriptor, -1, os.getegid())
            os.fchmod(descriptor, 0o600)


def _follow(
    worker: Worker, files: dict[int | None, _Follower], listener: Listener
) -> Outcome | None:
    """Hear a fetch until it is done; return None where it left the whole image in its file.

    `files` are those that it writes: None is the image's, others are of layers.
    """
    phase, total, in_layers = "asking", None, False
    while True:
        match _hear(worker):
            case protocol.Offering(offer):
                in_layers = bool(offer.layers)
                total = _offer(worker, files, listener, offer)
                continue
            case protocol.DigestWanted(layer):
                worker.tell(protocol.Digest(_written(files, layer).finish().sha256))
                continue
            case protocol.Moved(layer, done, of):
                _written(files, layer).follow(done)
                phase, total = "fetching", total if in_layers else of
            case protocol.Rewound(layer):
                _written(files, layer).rewind()
            case protocol.Retrying(why, wait_s):
                log.warning("%s: next try in %.1f s: %s", worker.uri, wait_s, why)
                phase = "waiting"
            case Declined() | Unchanged() as outcome:
                return outcome
            case protocol.Done():
                return Gathered() if in_layers else None
        listener.progress(phase, sum(file.position for file in files.values()), total)


def _written(files: dict[int | None, _Follower], layer: int | None) -> _Follower:
    if layer not in files:
        raise Bug("a fetch speaks of a layer that it was not asked for")
    return files[layer]


def _hear(worker: Worker) -> protocol.Report | None:
    """Return what the worker says next, None where it is silent. Raises the error that it met."""
    report = worker.hear()
    if isinstance(report, protocol.Failed):
        if report.traceback:
            log.error("%s", report.traceback)
        raise from_dict(report._asdict())
    return report


def _offer(
    worker: Worker, files: dict[int | None, _Follower], listener: Listener, offer: Offer
) -> int | None:
    """Pass an offer on, and the answer back; return the bytes that are to come."""
    image = files[None]
    files.clear()  # those of an earlier offer are closed by now
    files[None] = image
    answer = listener.offered(offer)
    if answer is None:
        worker.tell(Declined())
        return None
    wanted = {number: file for number, file in enumerate(answer) if file is not None}
    files.update({number: _Follower(file) for number, file in wanted.items()})
    worker.tell(protocol.Wanted(tuple(wanted)), list(wanted.values()))
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
