"""A TCP relay that cuts the first connection in the middle of an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_CHUNK = 64 * 1024


class Cutter:
    """Relays a port of its own on loopback to another one; use as a context manager.

    The first connection ends after so many bytes of answers, once `then` has been
    called. `heads` has what clients sent, one text for each connection.
    """

    def __init__(
        self, port: int, *, after_bytes: int, then: Callable[[], None] = lambda: None
    ) -> None:
        self._target = ("127.0.0.1", port)
        self._after_bytes = after_bytes
        self._then = then
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[str] = []

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            # Each by itself: a client may have several at a time.
            self.heads.append("")
            thread = threading.Thread(target=self._relay, args=(client, len(self.heads) - 1))
            self._threads.append(thread)
            thread.start()

    def _relay(self, client: socket.socket, number: int) -> None:
        with client, socket.create_connection(self._target) as server:
            asking = threading.Thread(target=self._ask, args=(client, server, number))
            asking.start()
            with suppress(OSError):
                self._answer(server, client, number)
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            asking.join()

    def _ask(self, client: socket.socket, server: socket.socket, number: int) -> None:
        with suppress(OSError):
            while data := client.recv(_CHUNK):
                self.heads[number] += data.decode("latin-1")
                server.sendall(data)
        # Whether the client hung up or reset the connection: nobody waits for an answer.
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _answer(self, server: socket.socket, client: socket.socket, number: int) -> None:
        left = self._after_bytes
        while data := server.recv(_CHUNK):
            if number:
                client.sendall(data)
                continue
            client.sendall(data[:left])
            left -= len(data)
            if left <= 0:
                self._then()
                return
