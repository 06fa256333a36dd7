"""The process that creates and reads munge credentials: the only one of a swarm that runs as root.

It has no network connection. The worker, which has, passes it the credentials that it received
and asks it for those to send. Each credential begins with a fixed prefix, so that no other program
accepts it, and names the job, the image and the nodes that it is for. Another node's description
of the image goes from this process directly to this node's root, so that the worker cannot change
it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from hpcimg import programs
from hpcimg.errors import HpcimgError, Unreachable
from hpcimg.fetch.contract import Whole
from hpcimg.peers.libmunge import Munge

# Includes the protocol version: nodes with another version are not peers.
_MARK = b"hpcimg-peers 1\n"
_LINE_MAX = 64 << 10
_ANSWER_S = 5.0
# A question; the answer of a live node; the description of the image.
ASK, HELLO, IMAGE = KINDS = ("ask", "hello", "image")


class Identity(NamedTuple):
    """What all credentials of one member name, and the nodes that it may talk to."""

    job: str
    wanted: str
    node: str
    nodes: tuple[str, ...]


class Signer:
    """The process, as seen by its parent. A context manager.

    `worker` is the worker's socket; close it in the parent once the worker has it.
    """

    def __init__(self, identity: Identity, munge_socket: str) -> None:
        """Start the process. Raises HpcimgError if there is no munge."""
        munge = Munge(munge_socket)
        self._ours, theirs = socket.socketpair()
        self.worker, asks = socket.socketpair()
        die_with_us = programs.die_with_parent()
        self._pid = os.fork()
        if self._pid == 0:
            die_with_us()
            _serve(munge, identity, theirs.detach(), asks.detach())
        theirs.close()
        asks.close()
        self._ours.settimeout(_ANSWER_S)
        self._said = self._ours.makefile("rb")

    def __enter__(self) -> Signer:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._said.close()
        self._ours.close()
        self.worker.close()

    def publish(self, whole: Whole) -> None:
        """Let other nodes know the image that this node has."""
        self._ours.sendall(json.dumps(whole).encode() + b"\n")

    def told(self) -> Whole:
        """Return the image as described by another node's root. Raises Unreachable."""
        try:
            return Whole(*json.loads(self._said.readline(_LINE_MAX)))
        except (OSError, ValueError, TypeError) as error:
            raise Unreachable("no node has said what the image is", why=str(error)) from None


class Notary:
    """Answers the worker's requests; `tell` sends to this node's root."""

    def __init__(self, munge: Munge, identity: Identity, tell: Callable[[Whole], None]) -> None:
        self._munge = munge
        self._identity = identity
        self._tell = tell
        self.whole: Whole | None = None

    def answer(self, request: Any) -> list[str] | None:
        """Return the answer to a request, None if it is refused. Raises HpcimgError."""
        match request:
            case ["sign", str(kind), str(to), str(nonce), str(word)]:
                return self._sign(kind, to, nonce, word)
            case ["read", str(kind), str(credential)]:
                return self._read(kind, credential)
        return None

    def _sign(self, kind: str, to: str, nonce: str, word: str) -> list[str] | None:
        if kind not in KINDS or to not in self._identity.nodes:
            return None
        if kind == IMAGE and self.whole is None:
            return None
        whole = self.whole if kind == IMAGE else None
        job, wanted, node, _ = self._identity
        said = json.dumps([kind, job, wanted, node, to, nonce, word, whole]).encode()
        return [self._munge.encode(_MARK + said)]

    def _read(self, kind: str, credential: str) -> list[str] | None:
        payload = self._munge.decode(credential)
        if payload is None or not payload.startswith(_MARK):
            return None
        said, job, wanted, node, to, nonce, word, whole = json.loads(payload[len(_MARK) :])
        ours = self._identity
        if (said, job, wanted, to) != (kind, ours.job, ours.wanted, ours.node):
            return None
        if node not in ours.nodes:
            return None
        if kind == IMAGE:
            self._tell(Whole(*whole))
        return [node, nonce, word]


def _serve(munge: Munge, identity: Identity, root: int, worker: int) -> NoReturn:
    """Answer until either side is gone or sends something malformed."""
    try:
        programs.close_all_but(root, worker)
        notary = Notary(munge, identity, lambda whole: _send(root, whole))
        heard: dict[int, bytes] = {root: b"", worker: b""}
        while True:
            for descriptor in select.select([root, worker], [], [])[0]:
                data = os.read(descriptor, _LINE_MAX)
                if not data:
                    os._exit(0)
                *lines, heard[descriptor] = (heard[descriptor] + data).split(b"\n")
                if len(heard[descriptor]) > _LINE_MAX:
                    os._exit(1)
                for line in lines:
                    if descriptor == root:
                        notary.whole = Whole(*json.loads(line))
                    else:
                        _send(worker, _answered(notary, line))
    finally:
        os._exit(1)


def _answered(notary: Notary, line: bytes) -> Any:
    try:
        return [notary.answer(json.loads(line)), ""]
    except HpcimgError as error:
        return [None, error.brief]


def _send(descriptor: int, said: Any) -> None:
    os.write(descriptor, json.dumps(said).encode() + b"\n")
