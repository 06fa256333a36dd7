"""TCP relays on loopback: a slow link, and one that breaks in the middle of an answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_CHUNK = 64 * 1024


class Relay:
    """Relays a port of its own on loopback to `target`. A context manager.

    Attributes: host, "127.0.0.1:PORT"; url; heads, what clients sent, one text per connection.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        """Listen; connections are accepted in the context only."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self.heads: list[str] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._ended = False

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        _hang_up(self._listener, *self._open)
        self._listener.close()
        for thread in self._threads:  # which increases until the first of them has ended
            thread.join()

    def _start(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            # A thread for each: a client may have several connections at a time.
            self.heads.append("")
            self._start(self._relay, client, len(self.heads) - 1)

    def _relay(self, client: socket.socket, number: int) -> None:
        with client, socket.create_connection(self._target) as server:
            self._open |= {client, server}
            if self._ended:
                return
            asking = self._start(self._ask, client, server, number)
            with suppress(OSError):
                self._answer(server, client, number)
            _hang_up(client, server)
            asking.join()
            self._open -= {client, server}

    def _ask(self, client: socket.socket, server: socket.socket, number: int) -> None:
        with suppress(OSError):
            while data := client.recv(_CHUNK):
                self.heads[number] += data.decode("latin-1")
                server.sendall(data)
        # Whether the client hung up or reset the connection: nobody waits for an answer.
        _hang_up(server)

    def _answer(self, server: socket.socket, client: socket.socket, number: int) -> None:
        """Pass on the answers of the connection with this number."""
        while data := server.recv(_CHUNK):
            client.sendall(data)


class Cutter(Relay):
    """Cuts the first connection after `after_bytes` of answers, once `then` has been called."""

    def __init__(
        self, port: int, *, after_bytes: int, then: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(("127.0.0.1", port))
        self._after_bytes = after_bytes
        self._then = then

    def _answer(self, server: socket.socket, client: socket.socket, number: int) -> None:
        if number:
            super()._answer(server, client, number)
            return
        left = self._after_bytes
        while left > 0 and (data := server.recv(_CHUNK)):
            client.sendall(data[:left])
            left -= len(data)
        if left <= 0:
            self._then()


class Throttle(Relay):
    """A slow link: answers pass at `bytes_per_s`, all connections together."""

    def __init__(self, target: tuple[str, int], *, bytes_per_s: float) -> None:
        super().__init__(target)
        self._rate = bytes_per_s
        self._gate = threading.Lock()
        self._free_at = 0.0

    def _answer(self, server: socket.socket, client: socket.socket, number: int) -> None:
        while data := server.recv(_CHUNK):
            time.sleep(self._wait(len(data)))
            client.sendall(data)

    def _wait(self, size: int) -> float:
        """Book the link for so many bytes; return how long to wait for it."""
        with self._gate:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self._rate
            return self._free_at - now


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
