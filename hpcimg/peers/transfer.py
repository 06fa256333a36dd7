"""libtorrent in a process of its own, so that it can be killed and leaves no file open.

Ending a libtorrent session properly can take as long as its peers want.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Sequence
from typing import Any, NoReturn

from hpcimg import programs
from hpcimg.errors import Bug, HpcimgError, Unreachable, from_dict
from hpcimg.peers.engine import Engine, Torrent

_LENGTH = struct.Struct("!I")
_READ = 1 << 16
_TELL_EVERY_S = 0.1
_BEGIN_S = 10.0


class Transfer:
    """One member's part in a swarm. `port` is where it listens."""

    def __init__(
        self, ports: Sequence[int], *, networks: Sequence[str], rate: int, directory: str
    ) -> None:
        """Listen. Raises Unreachable if no port is free.

        `networks` and `rate` are as in `hpcimg.peers.engine.Engine`; `directory` must be private.
        """
        self._arguments = {"networks": networks, "rate": rate, "directory": directory}
        self._pid = 0
        self.port = 0
        self._begin(ports)

    def share(
        self, torrent: Torrent, descriptor: int, *, whole: bool, index: int = 0, count: int = 1
    ) -> None:
        """Send an image from an open file, or fetch it into one.

        This member's pieces, by its `index` among `count`, are fetched first.
        """
        fields = [torrent.size_bytes, torrent.piece_length]
        binary = [torrent.pieces.hex(), torrent.salt.hex()]
        self._tell(["share", *fields, *binary, whole, index, count], [descriptor])

    def connect(self, address: str, port: int) -> None:
        """Connect to another member."""
        self._tell(["connect", address, port])

    def received(self) -> tuple[int, bool]:
        """Return the bytes received, and whether that is all. Raises HpcimgError, OSError."""
        while select.select([self._ours], [], [], 0)[0]:
            self._read()
        return self._received

    def end(self) -> None:
        """Kill the process: afterwards it has no file open and no port."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
            self._ours.close()

    def begin_again(self) -> None:
        """Start again, on the same port. Raises Unreachable."""
        port = self.port
        self.end()
        self._begin([port])

    def _begin(self, ports: Sequence[int]) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(_BEGIN_S)
        die_with_us = programs.die_with_parent()
        self._pid = os.fork()
        if self._pid == 0:
            die_with_us()
            _run(theirs, ports, self._arguments)
        theirs.close()
        self._heard = b""
        self._received = (0, False)
        self.port = 0
        try:
            while not self.port:
                self._read()
        except BaseException:
            self.end()
            raise

    def _tell(self, message: list[Any], files: Sequence[int] = ()) -> None:
        text = json.dumps(message).encode()
        with contextlib.suppress(OSError):  # if it has ended, _read reports that
            socket.send_fds(self._ours, [_LENGTH.pack(len(text))], files)
            self._ours.sendall(text)

    def _read(self) -> None:
        """Read the process's messages. Raises HpcimgError, OSError."""
        try:
            data = self._ours.recv(_READ)
        except OSError:
            data = b""
        if not data:
            raise Unreachable("libtorrent ended unexpectedly")
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        match json.loads(line):
            case ["port", int(port)]:
                self.port = port
            case ["at", int(done), bool(whole)]:
                self._received = done, whole
            case ["disk", int(code), str(why)]:
                raise OSError(code, why)
            case ["failed", dict(fields)]:
                raise from_dict(fields)


def _run(parent: socket.socket, ports: Sequence[int], arguments: dict[str, Any]) -> NoReturn:
    """Follow the parent's orders until it is gone."""

    def say(*words: object) -> None:
        parent.sendall(json.dumps(words).encode() + b"\n")

    try:
        signal.set_wakeup_fd(-1)
        programs.close_all_but(parent.fileno())  # above all, files that others will write
        engine = Engine(ports, **arguments)
        say("port", engine.port)
        _serve(parent, engine, say)
    except HpcimgError as error:
        say("failed", error.to_dict())
    except OSError as error:
        say("disk", error.errno or 0, error.strerror or "")
    except Exception as error:
        say("failed", Bug("libtorrent cannot be used", why=repr(error)).to_dict())
    finally:
        os._exit(0)


def _serve(parent: socket.socket, engine: Engine, say: Any) -> None:
    sharing, told = False, (-1, False)
    while True:
        if select.select([parent], [], [], _TELL_EVERY_S if sharing else None)[0]:
            length, files, _, _ = socket.recv_fds(parent, _LENGTH.size, 1)
            if not length:
                return
            [size] = _LENGTH.unpack(length)
            text = parent.recv(size, socket.MSG_WAITALL)
            match json.loads(text):
                case ["share", size_bytes, piece, pieces, salt, whole, index, count]:
                    torrent = Torrent(size_bytes, piece, bytes.fromhex(pieces), bytes.fromhex(salt))
                    engine.share(torrent, files[0], whole=whole, index=index, count=count)
                    sharing = not whole
                case ["connect", address, port]:
                    engine.connect(address, port)
        if sharing and (now := engine.received()) != told:
            told = now
            say("at", *now)
