"""Fetching, converting and verifying in processes without rights, and checking after them.

Nothing that a worker says about content is believed. When it has ended, its files are
sealed, and only then counted and digested: what was read before could be changed after.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence

from hpcimg import digests
from hpcimg.errors import Bug, DeadlinePassed, from_dict
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
from hpcimg.worker.seal import seal

log = logging.getLogger(__name__)
_LEFTOVERS_S = 5.0  # to look through the layers of a fetch that had no time left
_RETRIES_MAX = 1000  # which are worth a line in the log


def fetch(order: protocol.Fetch, descriptor: int, listener: Listener, sandbox: Sandbox) -> Outcome:
    """Fetch in a worker what the order names, as `hpcimg.fetch.contract.Way.fetch` says.

    The worker is gone when this returns or raises, and what it has written can only be
    read. Raises DeadlinePassed too: also where the worker cannot be ended, and then
    nothing of what it wrote has arrived.
    """
    files = _Files(descriptor)
    with Worker(order, sandbox) as worker:
        try:
            worker.begin([descriptor])
            outcome = _follow(worker, files, listener)
        finally:
            _end(worker, [descriptor, *files.layers.values()])
            _keep_layers(files, listener, order.uri, sandbox)
    if outcome is not None:
        return outcome
    seal(descriptor, uri=order.uri)
    return digests.of_file(descriptor, uri=order.uri, deadline=sandbox.deadline)


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
            _end(worker, [output])
    seal(output, uri=order.uri)
    return digests.of_file(output, uri=order.uri, deadline=sandbox.deadline)


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


class _Files:
    """What a fetch writes to: None is the image's file, others are of the offer's layers."""

    def __init__(self, image: int) -> None:
        self._image = image
        self.begin(Offer(""), ())

    def begin(self, offer: Offer, wanted: Sequence[int | None]) -> dict[int, int]:
        """Take an offer's files; those of an earlier one are closed. Return them by number."""
        self.layers = {number: file for number, file in enumerate(wanted) if file is not None}
        self.sizes = [layer.size_bytes for layer in offer.layers]
        self._written: dict[int | None, int] = {}
        return self.layers

    def of(self, layer: int | None) -> int:
        """Return a file. Raises Bug where there is none."""
        if layer is None:
            return self._image
        if layer not in self.layers:
            raise Bug("a fetch reported a layer that was not requested")
        return self.layers[layer]

    def moved(self, layer: int | None, done: int) -> None:
        """Take note that so much is said to be in the file: it is no more than what is there."""
        self._written[layer] = min(done, os.fstat(self.of(layer)).st_size)

    @property
    def written(self) -> int:
        """The bytes that are there."""
        return sum(self._written.values())


def _end(worker: Worker, files: Sequence[int]) -> None:
    """End it: from here on it writes no more. Raises DeadlinePassed where it cannot be ended.

    Its files are emptied then: removing them frees nothing while it has them open.
    """
    try:
        worker.end()
    except DeadlinePassed:
        for file in files:
            os.ftruncate(file, 0)
        raise


def _keep_layers(files: _Files, listener: Listener, uri: str, sandbox: Sandbox) -> None:
    """Let the cache have the layers that are whole, of a fetch that failed as well."""
    until = max(sandbox.deadline, time.monotonic() + _LEFTOVERS_S)
    for number, file in files.layers.items():
        if os.fstat(file).st_size == files.sizes[number]:
            seal(file, uri=uri)
            listener.arrived(number, digests.of_file(file, uri=uri, deadline=until))


def _follow(worker: Worker, files: _Files, listener: Listener) -> Outcome | None:
    """Hear a fetch until it is done; return None where it left the whole image in its file."""
    phase, total, in_layers, retries = "asking", None, False, 0
    while True:
        match _hear(worker):
            case protocol.Offering(offer):
                in_layers = bool(offer.layers)
                total = _offer(worker, files, listener, offer)
                continue
            case protocol.DigestWanted(layer):
                found = digests.of_file(files.of(layer), uri=worker.uri, deadline=worker.deadline)
                worker.tell(protocol.Digest(found.sha256))
                continue
            case protocol.Moved(layer, done, of):
                files.moved(layer, done)
                phase, total = "fetching", total if in_layers else of
            case protocol.Rewound(layer):
                files.moved(layer, 0)
            case protocol.Retrying(why, wait_s):
                retries += 1
                if retries > _RETRIES_MAX:
                    raise Bug("a fetch retries without end")
                log.warning("%s: next try in %.1f s: %s", worker.uri, wait_s, why)
                phase = "waiting"
            case Declined() | Unchanged() as outcome:
                return outcome
            case protocol.Done():
                return Gathered() if in_layers else None
        listener.progress(phase, files.written, total)


def _hear(worker: Worker) -> protocol.Report | None:
    """Return what the worker says next, None where it is silent. Raises the error that it met."""
    report = worker.hear()
    if isinstance(report, protocol.Failed):
        if report.traceback:
            log.error("%s", report.traceback)
        raise from_dict(report._asdict())
    return report


def _offer(worker: Worker, files: _Files, listener: Listener, offer: Offer) -> int | None:
    """Pass an offer on, and the answer back; return the bytes that are to come."""
    files.begin(offer, ())
    answer = listener.offered(offer)
    if answer is None:
        worker.tell(Declined())
        return None
    wanted = files.begin(offer, answer)
    worker.tell(protocol.Wanted(tuple(wanted)), list(wanted.values()))
    if offer.layers:
        return sum(offer.layers[number].size_bytes for number in wanted)
    return offer.size_bytes
