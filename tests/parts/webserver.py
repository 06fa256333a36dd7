"""A web server for tests: real sockets on loopback, well-behaved until a script says otherwise.

The ways to misbehave are in webfaults.py, what is sent is decided in webanswer.py.
"""

from __future__ import annotations

import os
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.parts.webanswer import Answer, Fault, Request, Resource, Stop, http_date, right_answer

_PIECE_BYTES = 65536
_TICK_S = 0.02


class Hold:
    """Stops the bodies of one path at a number of bytes until it is released."""

    def __init__(self, after_bytes: int) -> None:
        self.after_bytes = after_bytes
        self._reached = threading.Semaphore(0)
        self._released = threading.Event()

    def wait_reached(self, timeout_s: float = 60) -> None:
        """Wait until one more response stands at the hold; raise TimeoutError."""
        if not self._reached.acquire(timeout=timeout_s):
            raise TimeoutError(f"nothing reached the hold within {timeout_s:g} s")

    def release(self) -> None:
        """Let all go on, and those that come later pass."""
        self._released.set()

    def _pass(self) -> None:
        self._reached.release()
        self._released.wait()


class WebServer:
    """HTTP/1.1, with `tls` over TLS, on a free port of an address. Use as a context manager.

    Paths are matched without their query. `log` has every request in the order of arrival.
    With TLS, `certificate` is the PEM file that clients have to trust.
    """

    def __init__(self, *, tls: bool = False, address: str = "127.0.0.1") -> None:
        """Describe the server; nothing listens yet."""
        self.address = address
        self.log: list[Request] = []
        self.certificate = Path()
        self._tls = tls
        self._resources: dict[str, Resource] = {}
        self._handlers: dict[str, Callable[[Request], Answer]] = {}
        self._scripts: dict[str, list[Fault]] = {}
        self._holds: dict[str, Hold] = {}
        self._changed = threading.Condition()
        self.closing = threading.Event()

    def __enter__(self) -> Self:
        context = None
        if self._tls:
            self._directory = tempfile.TemporaryDirectory(prefix="webserver-")
            self.certificate, key = make_certificate(Path(self._directory.name))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, key)
        self._server = _Server(self, context)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_TICK_S,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End at once, whatever clients do; raise what went wrong in the server itself."""
        self.closing.set()
        for hold in list(self._holds.values()):
            hold.release()
        self._server.shutdown()
        self._server.cut_connections()
        self._server.server_close()
        self._thread.join()
        if self._tls:
            self._directory.cleanup()
        if self._server.errors:
            raise self._server.errors[0]

    def url(self, path: str = "") -> str:
        """Return the address of a path."""
        return f"http{'s' if self._tls else ''}://{self.address}:{self.port}{path}"

    # What is served

    def put(
        self,
        path: str,
        data: bytes,
        *,
        etag: str = "",
        last_modified: float | None = None,
        accept_ranges: bool = True,
        content_type: str = "application/octet-stream",
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Serve data at the path from now on and return its address.

        `etag` is sent as it is, with its quotes; `last_modified` is in seconds since 1970.
        """
        date = "" if last_modified is None else http_date(last_modified)
        self._resources[path] = Resource(
            data, etag, date, accept_ranges, content_type, dict(headers or {})
        )
        return self.url(path)

    def remove(self, path: str) -> None:
        """Answer 404 from now on."""
        del self._resources[path]

    def handle(self, path: str, function: Callable[[Request], Answer]) -> str:
        """Let a function answer, for what is more than data: tokens, programs' interfaces."""
        self._handlers[path] = function
        return self.url(path)

    def script(self, path: str, faults: Iterable[Fault]) -> None:
        """Use one fault for each of the next requests for the path, then behave well again."""
        with self._changed:
            self._scripts[path] = list(faults)

    @contextmanager
    def hold(self, path: str, *, after_bytes: int = 0) -> Iterator[Hold]:
        """Stop bodies at so many bytes, or at their end where they are shorter.

        Empty bodies pass. What is held goes on when the block ends, at the latest.
        """
        hold = self._holds[path] = Hold(after_bytes)
        try:
            yield hold
        finally:
            hold.release()
            del self._holds[path]

    # What was asked

    def requests(self, method: str = "", path: str = "") -> list[Request]:
        """Return the requests so far, of one method and path where given."""
        with self._changed:
            return [
                request
                for request in self.log
                if method in ("", request.method) and path in ("", request.path)
            ]

    def count(self, method: str = "", path: str = "") -> int:
        """Return how many requests there were."""
        return len(self.requests(method, path))

    def wait_count(
        self, count: int, method: str = "", path: str = "", *, timeout_s: float = 60
    ) -> None:
        """Wait until there were so many requests; raise TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.count(method, path) >= count, timeout_s):
                seen = self.count(method, path)
                raise TimeoutError(f"{seen} of {count} {method} {path} within {timeout_s:g} s")

    # Called by the handler

    def answer(self, request: Request) -> Answer:
        """Record the request and decide on the answer."""
        with self._changed:
            self.log.append(request)
            self._changed.notify_all()
            script = self._scripts.get(request.path)
            fault = script[0] if script else None
            if script and not getattr(fault, "sticky", False):
                del script[0]
        resource = self._resources.get(request.path)
        handler = self._handlers.get(request.path)
        answer = handler(request) if handler else right_answer(request, resource)
        return fault(answer, request, resource) if fault else answer

    def held(self, path: str) -> Hold | None:
        """Return what holds the path's bodies now."""
        return self._holds.get(path)


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 and localhost that signs itself; return it and its key."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    argv = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"]
    argv += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
    argv += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    argv += ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(argv, check=True, capture_output=True)
    return certificate, key


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server's: that one asks the name service for its own name.
    #
    # Joined when the server closes: no thread outlives its test.
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, web: WebServer, context: ssl.SSLContext | None) -> None:
        self.web = web
        self.errors: list[BaseException] = []
        self._context = context
        self._connections: set[socket.socket] = set()
        super().__init__((web.address, 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            # The handshake is left to the connection's thread: a slow client stops nobody.
            connection = self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        """Wake every thread that reads from or writes to a client."""
        for connection in list(self._connections):
            try:
                # Of the plain socket: an SSLSocket would drop its TLS state under the thread.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that went away; keep what is a mistake in here."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        web = self.server.web
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, url.path, url.query, self.headers, body)
        answer = web.answer(request)
        stop = answer.stop
        if stop is not None and stop.at < 0 and not self._go_on(stop):
            return
        if answer.framing == "raw":
            self.close_connection = True
        else:
            self._send_head(request, answer)
        if request.method != "HEAD":
            self._send_body(request, answer)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _send_head(self, request: Request, answer: Answer) -> None:
        request.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.framing == "close":
            self.send_header("Connection", "close")
        elif "Content-Length" not in answer.headers and answer.status != 304:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()

    def _send_body(self, request: Request, answer: Answer) -> None:
        body = memoryview(answer.body)
        hold, stop = self.server.web.held(request.path), answer.stop
        hold_at = min(hold.after_bytes, len(body)) if hold and body else -1
        stop_at = min(stop.at, len(body)) if stop else -1
        position = 0
        for mark in sorted({hold_at, stop_at, len(body)} - {-1}):
            self._write(request, answer, body[position:mark])
            position = mark
            if hold and mark == hold_at:
                hold._pass()
            if stop and mark == stop_at and not self._go_on(stop):
                return
        while answer.endless and not self.server.web.closing.is_set():
            self._write(request, answer, body)
        if answer.framing == "chunked":
            self.wfile.write(b"0\r\n\r\n")
        # A wrong length leaves the client waiting, or bytes that are no response behind.
        if answer.headers.get("Content-Length", str(len(body))) != str(len(body)):
            self.close_connection = True

    def _write(self, request: Request, answer: Answer, data: memoryview) -> None:
        size = max(1, int(answer.bytes_per_s * _TICK_S)) if answer.bytes_per_s else _PIECE_BYTES
        for start in range(0, len(data), size):
            piece = bytes(data[start : start + size])
            if answer.bytes_per_s and self.server.web.closing.wait(len(piece) / answer.bytes_per_s):
                raise ConnectionAbortedError
            if answer.framing == "chunked":
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                self.wfile.write(piece)
            request.sent_bytes += len(piece)

    def _go_on(self, stop: Stop) -> bool:
        """Do what the fault asks for; tell whether the response goes on."""
        if stop.how == "pause":
            return not self.server.web.closing.wait(stop.pause_s)
        self.close_connection = True
        if stop.how == "reset":
            # With no time to linger, close sends RST. The descriptor itself is closed, since
            # the handler's files would keep the socket open.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(self.connection.detach())
        return False

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean: `WebServer.log` has it all."""
