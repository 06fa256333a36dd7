"""The way to an image through the other nodes of the job, in front of any other way.

This is root's part. It starts an unprivileged worker, which talks to the network, and a process
that signs for it. It learns from the latter what the image is, and checks the digest of what the
former has fetched. One node of the job, the leader, uses the way behind, and so does any node
that makes no progress.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from hpcimg import digests
from hpcimg.cache import events, store
from hpcimg.cache.ensure import Staged
from hpcimg.errors import Bug, Damaged, HpcimgError
from hpcimg.fetch.contract import (
    PEERS,
    Declined,
    Fetched,
    Listener,
    Outcome,
    Unchanged,
    Way,
    Whole,
)
from hpcimg.fronts import Asked, Front, Reporting
from hpcimg.peers.credentials import Identity, Signer
from hpcimg.worker import accounts, protocol
from hpcimg.worker.process import Sandbox, Worker
from hpcimg.worker.seal import seal

log = logging.getLogger(__name__)
_ADVANCE_EVERY_S = 1.0
_TO_LEAVE_S = 5.0  # for a worker to end, after its time to linger


class Swarm(ExitStack, Front):
    """The nodes of one job, as a way to one image. A context manager: it ends all processes."""

    def __init__(self, asked: Asked, behind: Way) -> None:
        ExitStack.__init__(self)
        Front.__init__(self, behind)
        self._asked = asked
        self._uri = asked.request.reference.uri
        self._account = accounts.unprivileged(asked.config.account)
        self._worker: Worker | None = None
        self._signer: Signer | None = None
        self._by_cache: HpcimgError | None = None
        self._over = False
        self._next = 0.0  # time.monotonic() of the next progress report

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        leading = False
        if self._over:
            return self.behind.fetch(descriptor, listener, validator=validator)
        try:
            self._join()
            outcome = self._follow(descriptor, listener, validator)
            if outcome is not None:
                return outcome
            leading = True
        except HpcimgError as error:
            if error is self._by_cache:
                raise
            self._give_up(error)
            _empty(descriptor)
        if leading:
            log.info("%s: this node fetches for the other nodes of the job", self._uri)
            listener = Reporting(listener, self)
        return self.behind.fetch(descriptor, listener, validator=validator)

    def decides(self) -> bool:
        """With a site tier the nodes agree there; otherwise the leader's image is the job's."""
        config, request = self._asked.config, self._asked.request
        alone = config.peers != "yes" or config.site_path
        return bool(request.together) and not alone and not request.reference.pinned

    def finish(self, staged: Staged) -> None:
        """Send the image to the nodes that still need it, at most for [peers] linger."""
        worker, signer, entry = self._worker, self._signer, staged.entry
        self._over = True
        if worker is None or signer is None or entry.owner is not None:
            return
        try:
            signer.publish(
                Whole(
                    staged.validator, entry.key, entry.sha256, entry.size_bytes, entry.source, PEERS
                )
            )
            with open(staged.path, "rb") as file:
                worker.tell(protocol.Published(entry.size_bytes), [file.fileno()])
            until = time.monotonic() + self._asked.config.peers_linger_s + _TO_LEAVE_S
            while time.monotonic() < until:
                if isinstance(worker.hear(), protocol.Done):
                    return
        except (HpcimgError, OSError) as error:
            log.warning("%s is no longer sent to the other nodes of the job: %s", self._uri, error)

    def _join(self) -> None:
        """Start the processes. Raises HpcimgError."""
        config, request, cache = self._asked.config, self._asked.request, self._asked.cache
        account = self._account
        # A node with other settings would get a different image.
        kind = f"{request.reference.address} {cache.image_format} {cache.verified}"
        wanted = hashlib.sha256(kind.encode()).hexdigest()
        identity = Identity(request.job, wanted, request.node, request.nodes)
        signer = self.enter_context(Signer(identity, config.peers_munge_socket))
        directory = self.enter_context(
            store.work_directory(cache.layout, account.uid if account else None)
        )
        order = protocol.Share(
            uri=self._uri,
            wanted=wanted,
            job=request.job,
            node=request.node,
            nodes=request.nodes,
            port=config.peers_port,
            networks=config.peers_networks,
            directory=directory,
            wait_s=config.peers_wait_s,
            patience_s=config.patience_s,
            linger_s=config.peers_linger_s,
            rate=config.peers_rate,
        )
        sandbox = Sandbox(account, request.deadline, cache.image_bytes)
        worker = self.enter_context(Worker(order, sandbox))
        worker.begin([signer.worker.fileno()])
        signer.worker.close()
        self._signer, self._worker = signer, worker

    def _follow(self, descriptor: int, listener: Listener, validator: str) -> Outcome | None:
        """Fetch the image from the other nodes; return None if this node has to lead."""
        worker = self._worker
        assert worker
        whole: Whole | None = None
        phase, done, total, said = "waiting", 0, None, ""
        while True:
            match worker.hear():
                case protocol.Leading():
                    if whole:  # the leader failed during the transfer
                        _empty(descriptor)
                    return None
                case protocol.Awaiting(how, _):
                    if how != said:
                        log.info("%s: %s", self._uri, how)
                    said = how
                case protocol.Found():
                    whole, outcome = self._found(descriptor, listener, validator)
                    if outcome is not None:
                        worker.tell(Declined())
                        return outcome
                    worker.tell(protocol.Wanted(()), [descriptor])
                case protocol.Moved(None, moved, size) if whole:
                    phase, done, total = "fetching", min(moved, whole.size_bytes), size
                case protocol.Rewound(None):
                    phase, done, total = "waiting", 0, None
                case protocol.Done() if whole:
                    return self._take(descriptor, whole)
                case None:
                    pass
                case _:
                    raise Bug("a swarm's worker sent a message out of turn")
            self._cache(listener.progress, phase, done, total)

    def _found(
        self, descriptor: int, listener: Listener, validator: str
    ) -> tuple[Whole, Outcome | None]:
        """Offer the cache another node's image; return it, and the outcome if nothing is needed."""
        assert self._signer
        whole = self._signer.told()
        if validator and whole.validator == validator:
            return whole, Unchanged()
        if self._cache(listener.offered, whole) is None:
            return whole, Declined()
        if self._account is not None:  # libtorrent opens the file by its path
            os.fchown(descriptor, self._account.uid, -1)
        return whole, None

    def _take(self, descriptor: int, whole: Whole) -> Fetched:
        """Seal the file and return its size and digest. Raises Interrupted, Damaged."""
        seal(descriptor, uri=self._uri)
        deadline = self._asked.request.deadline
        fetched = digests.of_file(descriptor, uri=self._uri, deadline=deadline)
        if fetched != (whole.size_bytes, whole.sha256):
            raise Damaged(f"{self._uri} is not what the leader of the job has")
        return fetched

    def _cache(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call the cache; remember its error, which is not a failure of the other nodes."""
        try:
            return call(*arguments)
        except HpcimgError as error:
            self._by_cache = error
            raise

    def advance(self, phase: str, done: int) -> None:
        """Report this node's progress to the other nodes, once a second."""
        if self._worker is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _ADVANCE_EVERY_S
        try:
            self._worker.tell(protocol.Advance(phase, done))
        except HpcimgError as error:
            self._give_up(error)

    def _give_up(self, error: HpcimgError) -> None:
        """Log the failure, and go on without the other nodes. Raises DeadlinePassed."""
        log.warning("%s is fetched without the other nodes of the job: %s", self._uri, error)
        path = self._asked.cache.layout.events
        events.record(
            path,
            "peers_failed",
            job=self._asked.request.job,
            error=type(error).__name__,
            uri=self._uri,
        )
        self._worker = self._signer = None
        self.close()


def _empty(descriptor: int) -> None:
    """Restore the file to its initial state: empty, owned by root, open for writing."""
    path = f"/proc/self/fd/{descriptor}"
    os.fchown(descriptor, os.geteuid(), -1)
    os.fchmod(descriptor, 0o600)
    writable = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(writable, descriptor, inheritable=False)
    finally:
        os.close(writable)
    os.ftruncate(descriptor, 0)
