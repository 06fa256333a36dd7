"""Fetching, converting and verifying in unprivileged processes, and checking their results.

Nothing that a worker says about content is trusted. After it has ended, its files are sealed, and
only then measured and digested: anything read earlier could still change.
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
_LEFTOVERS_S = 5.0  # to check the layers of a fetch that ran out of time
_RETRIES_MAX = 1000  # retries worth a line in the log


def fetch(order: protocol.Fetch, descriptor: int, listener: Listener, sandbox: Sandbox) -> Outcome:
    """Fetch with a worker, as `hpcimg.fetch.contract.Way.fetch` says.

    The worker is gone when this returns or raises, and its files are read-only. Also raises
    DeadlinePassed if the worker cannot be killed; then nothing that it wrote has arrived.
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
    """Convert with a worker; `files` are the empty output and the layers, lowest first.

    The rest is as in `hpcimg.fetch.contract.Way.convert`.
    """
    output = files[0]
    account = sandbox.account
    with Worker(order, sandbox) as worker:
        try:
            if account is not None:  # its tools reopen the file by path
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
    """Check with a worker whether the site trusts the image in the file. Raises HpcimgError.

    The worker can only read the file.
    """
    account = sandbox.account
    file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if account is not None:  # through its group: an owner could make it writable
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
    """The files that a fetch writes: None is the image's file, numbers are the offer's layers."""

    def __init__(self, image: int) -> None:
        self._image = image
        self.begin(Offer(""), ())

    def begin(self, offer: Offer, wanted: Sequence[int | None]) -> dict[int, int]:
        """Take an offer's files, and close those of an earlier one. Return them by number."""
        self.layers = {number: file for number, file in enumerate(wanted) if file is not None}
        self.sizes = [layer.size_bytes for layer in offer.layers]
        self._written: dict[int | None, int] = {}
        return self.layers

    def of(self, layer: int | None) -> int:
        """Return a file. Raises Bug if there is none."""
        if layer is None:
            return self._image
        if layer not in self.layers:
            raise Bug("a fetch reported a layer that was not requested")
        return self.layers[layer]

    def moved(self, layer: int | None, done: int) -> None:
        """Note how many bytes are reported for a file: no more than it contains."""
        self._written[layer] = min(done, os.fstat(self.of(layer)).st_size)

    @property
    def written(self) -> int:
        """The bytes written so far."""
        return sum(self._written.values())


def _end(worker: Worker, files: Sequence[int]) -> None:
    """Kill it: it then writes no more. Raises DeadlinePassed if it cannot be killed.

    In that case its files are truncated: removing them frees nothing while it has them open.
    """
    try:
        worker.end()
    except DeadlinePassed:
        for file in files:
            os.ftruncate(file, 0)
        raise


def _keep_layers(files: _Files, listener: Listener, uri: str, sandbox: Sandbox) -> None:
    """Give the cache the complete layers, even of a fetch that failed."""
    until = max(sandbox.deadline, time.monotonic() + _LEFTOVERS_S)
    for number, file in files.layers.items():
        if os.fstat(file).st_size == files.sizes[number]:
            seal(file, uri=uri)
            listener.arrived(number, digests.of_file(file, uri=uri, deadline=until))


def _follow(worker: Worker, files: _Files, listener: Listener) -> Outcome | None:
    """Follow a fetch until it is done; return None if the whole image is in its file."""
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
    """Return the worker's next report, None if it is silent. Raises the error that it reports."""
    report = worker.hear()
    if isinstance(report, protocol.Failed):
        if report.traceback:
            log.error("%s", report.traceback)
        raise from_dict(report._asdict())
    return report


def _offer(worker: Worker, files: _Files, listener: Listener, offer: Offer) -> int | None:
    """Pass an offer on, and the answer back; return the announced size in bytes."""
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
