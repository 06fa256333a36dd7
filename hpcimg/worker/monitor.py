"""Fetching, converting and verifying in unprivileged processes, and checking their results.

Nothing that a worker says about content is trusted. When it has closed a file, or has ended, the
file is sealed, and only then measured and digested: anything read earlier could still change.

One thread does all of this, so that no worker is a thread's child, which would die with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hpcimg import digests, schemes
from hpcimg.errors import Bug, DeadlinePassed
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
from hpcimg.worker import protocol, starting
from hpcimg.worker.process import Sandbox, Worker
from hpcimg.worker.seal import seal

log = logging.getLogger(__name__)
_LEFTOVERS_S = 5.0  # to check the layers of a fetch that ran out of time
_RETRIES_MAX = 1000  # retries worth a line in the log
_REPORTS_AT_ONCE = 100  # of a conversion that may never stop reporting, while a fetch is followed


def fetch(order: protocol.Fetch, descriptor: int, listener: Listener, sandbox: Sandbox) -> Outcome:
    """Fetch with a worker, as `hpcimg.fetch.contract.Way.fetch` says.

    The worker is gone when this returns or raises, and its files are read-only. Also raises
    DeadlinePassed if the worker cannot be killed; then nothing that it wrote has arrived.
    """
    files = _Files(descriptor, listener, order.uri, sandbox.deadline)
    with Worker(order, sandbox) as worker:
        try:
            worker.begin([descriptor])
            if schemes.of(order.reference.scheme).layers and not order.validator:
                starting.early(starting.CONVERT)  # while this process waits for the other one
            outcome = _follow(worker, files, listener)
        finally:
            _end(worker, files.writable)
            files.keep()
    if outcome is not None:
        return outcome
    seal(descriptor, uri=order.uri)
    return digests.of_file(descriptor, uri=order.uri, deadline=sandbox.deadline)


@contextmanager
def convert(
    order: protocol.Convert, output: int, progress: Converting, sandbox: Sandbox
) -> Iterator[Conversion]:
    """Convert with a worker into the empty file `output`.

    The rest is as in `hpcimg.fetch.contract.Way.convert`.
    """
    account = sandbox.account
    with Worker(order, sandbox) as worker:
        try:
            if account is not None:  # its tools reopen the file by path
                os.fchown(output, account.uid, -1)
            worker.begin([output])
            yield Conversion(worker, output, progress)
        finally:
            _end(worker, [output])


class Conversion:
    """A `hpcimg.fetch.contract.Conversion` by a worker."""

    def __init__(self, worker: Worker, output: int, progress: Converting) -> None:
        self._worker = worker
        self._output = output
        self._progress = progress
        self._said = protocol.Converted(0, None, 0)
        self._done = False

    def add(self, number: int, layer: int) -> None:
        self._worker.tell(protocol.Layer(number), [layer])

    def follow(self) -> int:
        for _ in range(_REPORTS_AT_ONCE):
            if self._done or not self._take(self._worker.hear(wait_s=0)):
                break
        return self._said.beside

    def finish(self) -> Fetched:
        while not self._done:
            self._take(self._worker.hear())
            self._progress(*self._said)
        _end(self._worker, [self._output])
        uri, deadline = self._worker.uri, self._worker.deadline
        seal(self._output, uri=uri)
        return digests.of_file(self._output, uri=uri, deadline=deadline)

    def _take(self, report: protocol.Report | None) -> bool:
        """Note a report; tell whether it was one."""
        if isinstance(report, protocol.Converted):
            self._said = report
        self._done = isinstance(report, protocol.Done)
        return report is not None


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
            while not isinstance(worker.hear(), protocol.Done):
                pass
    finally:
        os.close(file)
        if account is not None:
            os.fchown(descriptor, -1, os.getegid())
            os.fchmod(descriptor, 0o600)


class _Files:
    """The files that a fetch writes: None is the image's file, numbers are the offer's layers.

    `layers` are those of layers that the listener has not got yet.
    """

    def __init__(self, image: int, listener: Listener, uri: str, deadline: float) -> None:
        self._image = image
        self._listener = listener
        self._uri = uri
        self._deadline = deadline
        self.begin(Offer(""), ())

    def begin(self, offer: Offer, wanted: Sequence[int | None]) -> dict[int, int]:
        """Take an offer's files, and close those of an earlier one. Return them by number."""
        self.layers = {number: file for number, file in enumerate(wanted) if file is not None}
        self.sizes = [layer.size_bytes for layer in offer.layers]
        self._written: dict[int | None, int] = {}
        self._digesting: dict[int, digests.Steps] = {}
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

    def complete(self, layer: int) -> None:
        """Start to digest a layer that the worker reports as closed."""
        if os.fstat(self.of(layer)).st_size == self.sizes[layer] and layer not in self._digesting:
            self._begin(layer)
            self._written[layer] = self.sizes[layer]

    @property
    def writable(self) -> list[int]:
        """The files that a worker can still write to."""
        layers = [file for layer, file in self.layers.items() if layer not in self._digesting]
        return [self._image, *layers]

    @property
    def digesting(self) -> bool:
        """Whether there is something to digest."""
        return bool(self._digesting)

    def digest(self) -> bool:
        """Digest for a moment; return True if a layer was finished, and passed to the listener."""
        layer, steps = next(iter(self._digesting.items()))
        try:
            next(steps)
        except StopIteration as end:
            self._arrived(layer, end.value)
            return True
        return False

    def keep(self) -> None:
        """Give the listener all complete layers, when nobody writes any more.

        Even of a fetch that failed.
        """
        for layer, file in list(self.layers.items()):
            if os.fstat(file).st_size == self.sizes[layer]:
                if layer not in self._digesting:
                    self._begin(layer)
                self._arrived(layer, digests.finish(self._digesting[layer]))

    def _begin(self, layer: int) -> None:
        file, uri = self.layers[layer], self._uri
        seal(file, uri=uri)
        until = self._deadline + _LEFTOVERS_S
        self._digesting[layer] = digests.in_steps(file, uri=uri, deadline=until)

    def _arrived(self, layer: int, fetched: Fetched) -> None:
        del self._digesting[layer], self.layers[layer]
        self._listener.arrived(layer, fetched)


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


def _follow(worker: Worker, files: _Files, listener: Listener) -> Outcome | None:
    """Follow a fetch until it is done; return None if the whole image is in its file."""
    phase, total, in_layers, retries = "asking", None, False, 0
    while True:
        if files.digesting and files.digest():
            listener.progress(phase, files.written, total)
        match worker.hear(wait_s=0 if files.digesting else 1):
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
            case protocol.Complete(layer):
                files.complete(layer)
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
