"""A slow link: a TCP relay that lets through so many bytes a second, all connections together."""

from __future__ import annotations

import socket
import threading
import time
from typing import Self

_CHUNK = 64 * 1024


class Throttle:
    """Relays a port of its own on loopback to `target`, answers at `bytes_per_s`.

    A context manager; `host` is "127.0.0.1:PORT".
    """

    def __init__(self, target: tuple[str, int], *, bytes_per_s: float) -> None:
        self._target = target
        self._rate = bytes_per_s
        self._gate = threading.Lock()
        self._free_at = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(self._target)
            for source, sink, slow in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._relay, args=(source, sink, slow), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        try:
            while data := source.recv(_CHUNK):
                if slow:
                    time.sleep(self._wait(len(data)))
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()

    def _wait(self, size: int) -> float:
        """Book the link for so many bytes; return how long to wait for it."""
        with self._gate:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self._rate
            return self._free_at - now
