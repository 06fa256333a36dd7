"""What goes wrong before any HTTP is spoken: connections that are not made, TLS that breaks."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from tests.integration.checks import failed, finish
from tests.integration.conftest import Start
from tests.parts.node import Node

DEADLINE_S = 8
SLACK_S = 15
# At its deadline it may be in the middle of a try.
PASSES = ("Unreachable", "DeadlinePassed")


class Listener:
    """Accepts connections and does one thing to each of them. A context manager."""

    def __init__(self, treat: Callable[[socket.socket], None]) -> None:
        self.accepted = 0
        self._treat = treat
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        with ExitStack() as connections:
            while True:
                try:
                    connection, _ = self._socket.accept()
                except OSError:  # the end
                    return
                connections.enter_context(connection)
                self.accepted += 1
                self._treat(connection)


def say_nothing(_: socket.socket) -> None:
    """Leave it open."""


def close(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.close()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def speak_no_tls(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


class Row(NamedTuple):
    """What a server does to a TLS client; the errors that may follow, words, whether again."""

    treat: Callable[[socket.socket], None]
    errors: tuple[str, ...]
    words: str
    again: bool = True


ROWS = [
    Row(say_nothing, PASSES, "timed out"),
    Row(close, PASSES, "the server ended the connection unexpectedly"),
    Row(reset, PASSES, "Connection reset by peer"),
    Row(speak_no_tls, ("Forbidden",), "Check the address: the server does not speak", again=False),
]


def test_tls_that_is_not_established(start: Start, node: Node) -> None:
    configure(node)
    with ExitStack() as stack:
        listeners = [stack.enter_context(Listener(row.treat)) for row in ROWS]
        began = time.monotonic()
        prologs = [
            start(node, job, f"container:https://127.0.0.1:{listener.port}/x.sif")
            for job, listener in enumerate(listeners)
        ]
        for prolog in prologs:
            finish(prolog)
        assert time.monotonic() - began < DEADLINE_S + SLACK_S
    for job, (row, listener) in enumerate(zip(ROWS, listeners, strict=True)):
        error = node.record(job)["error"]
        assert error in row.errors, row
        said = failed(node, job, node.task(job), error).printed
        told = [line for line in node.log().splitlines() if f"job {job}: " in line]
        assert row.words in said + "\n".join(told), (row, told)
        assert (listener.accepted > 1) == row.again, row


def test_a_connection_that_nobody_accepts(start: Start, node: Node) -> None:
    configure(node)
    with nobody_accepts() as port:
        began = time.monotonic()
        finish(start(node, 1, f"container:http://127.0.0.1:{port}/x.sif"))
        assert time.monotonic() - began < DEADLINE_S + SLACK_S
    error = node.record(1)["error"]
    assert error in PASSES
    failed(node, 1, node.task(1), error)
    assert "could not be read: Connection to 127.0.0.1 timed out." in node.log()


def configure(node: Node) -> None:
    node.configure(
        f"[stage]\ndeadline = {DEADLINE_S}s\nconnect_timeout = 0.5s\nstall_timeout = 0.5s\n"
    )


@contextmanager
def nobody_accepts() -> Iterator[int]:
    """Yield a port with a full connection backlog: the kernel answers no further connections."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
