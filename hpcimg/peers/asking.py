"""One node of the job asks another: whether it leads, its progress, what the image is.

Both sides of a TCP connection send lines. `ask`, `hello` and `image` carry munge credentials; the
lines between them only tell how long to wait.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hpcimg.peers import credentials
from hpcimg.peers.desk import Desk
from hpcimg.peers.engine import Torrent

_IMAGE_LINE_MAX = 8 << 20  # piece hashes of the largest image
CONNECT_S = 2.0
SILENCE_S = 8.0
_FLUSH_S = 30.0
_READ = 1 << 16
TELL_EVERY_S = 1.0
_DIGESTED_PER_S = 200e6  # bytes: a leader that checks the whole image shows no progress


class Absent(NamedTuple):
    """The node cannot be asked: nothing listens there, or not with root's credentials."""


class Lost(NamedTuple):
    """The node answered, and is gone now or makes no progress."""


class Undecided(NamedTuple):
    """The node does not know yet who leads."""


class Elsewhere(NamedTuple):
    """The node follows another one."""

    node: str


class Found(NamedTuple):
    """Another node has the image: its torrent, and the members to fetch it from.

    This node is member `number` among `among`.
    """

    torrent: Torrent
    number: int
    among: int
    members: tuple[tuple[str, int], ...]
    leader: tuple[str, int]
    line: Line


class Line:
    """A connection to another node, read in lines of at most `most` bytes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, most: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._most = most
        self._heard = b""

    async def hear(self, silence_s: float) -> list[str]:
        """Return the words of the next line; none at the end, or after `silence_s` without data."""
        while (end := self._heard.find(b"\n")) < 0:
            try:
                async with asyncio.timeout(silence_s):
                    data = await self._reader.read(_READ)
            except (OSError, TimeoutError):
                return []
            if not data or len(self._heard) > self._most:
                return []
            self._heard += data
        line, self._heard = self._heard[:end], self._heard[end + 1 :]
        return line.decode(errors="replace").split()

    def say(self, *words: str) -> None:
        """Send a line. Errors are ignored: `hear` notices if the other side is gone."""
        self._writer.write(" ".join(words).encode() + b"\n")

    async def flush(self) -> None:
        """Wait until the lines have been sent. Raises OSError, TimeoutError."""
        async with asyncio.timeout(_FLUSH_S):
            await self._writer.drain()

    @property
    def address(self) -> str:
        """The other side's address."""
        peer = self._writer.get_extra_info("peername") or ("",)
        text = str(peer[0]).partition("%")[0]
        return text.removeprefix("::ffff:")

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._writer.close()


Outcome = Found | Elsewhere | Undecided | Absent | Lost


class Asker:
    """Asks the nodes of one job, at `port`.

    `listens` is the port of this node's libtorrent. A node without progress for `patience_s` is
    lost, but not before the `wait_s` in which all nodes start.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        port: int,
        networks: Sequence[str],
        listens: int,
        wait_s: float,
        patience_s: float,
    ) -> None:
        self._desk = desk
        self._port = port
        self._networks = networks
        self._listens = listens
        self._wait_s = wait_s
        self._patience_s = patience_s

    async def consult(
        self, node: str, *, heard: Callable[[str, int], None], only_leading: bool = False
    ) -> Outcome:
        """Ask a node, and wait until it has the image or is not worth waiting for.

        `heard` is called with its phase and bytes. With `only_leading`, a node that does not lead
        yet is not waited for, and only then is the outcome Undecided.
        """
        line = await self._connect(node)
        if line is None:
            return Absent()
        outcome: Outcome = Lost()
        try:
            outcome = await self._converse(node, line, heard, only_leading=only_leading)
        finally:
            if not isinstance(outcome, Found):
                line.close()
        return outcome

    async def _connect(self, node: str) -> Line | None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                for *_, address in await loop.getaddrinfo(node, self._port, type=1):
                    if not within(self._networks, str(address[0])):
                        continue
                    with contextlib.suppress(OSError):
                        return Line(
                            *await asyncio.open_connection(*address[:2]), most=_IMAGE_LINE_MAX
                        )
        return None

    async def _converse(
        self, node: str, line: Line, heard: Callable[[str, int], None], *, only_leading: bool
    ) -> Outcome:
        nonce = secrets.token_hex(16)
        line.say("ask", await self._desk.sign(credentials.ASK, node, nonce))
        match await line.hear(SILENCE_S):
            case ["hello", credential]:
                read = await self._desk.read(credentials.HELLO, credential)
                if read is None or read[:2] != (node, nonce):
                    return Absent()
            case _:
                return Absent()
        line.say("port", str(self._listens))
        # It may wait this long for another node before it leads.
        moved, seen, size = time.monotonic() + self._wait_s, ["electing"], 0
        while True:
            words = await line.hear(SILENCE_S)
            if words[:1] == ["image"]:
                return await self._image(node, nonce, line, words[1:])
            match words:
                case ["follow", other]:
                    return Elsewhere(other)
                case ["electing"] if only_leading:
                    return Undecided()
                case ["electing"]:
                    pass
                case ["progress", phase, done] if done.isdecimal() and len(done) < 19:
                    size = int(done)
                    heard(phase[:20], size)
                case _:
                    return Lost()
            if words != seen:
                moved, seen = time.monotonic(), words
            if time.monotonic() - moved > self._patience_s + size / _DIGESTED_PER_S:
                return Lost()

    async def _image(self, node: str, nonce: str, line: Line, words: Sequence[str]) -> Found | Lost:
        """Parse the image's description; Lost unless the torrent is the one that root signed."""
        try:
            credential, text = words
            size, length, pieces, index, count, port, members = json.loads(text)
            read = await self._desk.read(credentials.IMAGE, credential)
            if read is None or read[:2] != (node, nonce):
                return Lost()
            name, salt = read[2].split()
            torrent = Torrent(int(size), int(length), base64.b64decode(pieces), bytes.fromhex(salt))
            if not torrent.fits() or torrent.name() != name:
                return Lost()
            others = tuple((str(address), int(at)) for address, at in members)
            others = tuple(other for other in others if within(self._networks, other[0]))
            leader = (line.address, int(port))
            return Found(torrent, int(index), max(1, int(count)), others, leader, line)
        except (ValueError, TypeError, RecursionError):
            return Lost()


def image_line(
    torrent: Torrent, *, index: int, count: int, port: int, members: Sequence[tuple[str, int]]
) -> str:
    """Return the word that follows the credential in an `image` line."""
    pieces = base64.b64encode(torrent.pieces).decode()
    said = [torrent.size_bytes, torrent.piece_length, pieces, index, count, port, members]
    return json.dumps(said, separators=(",", ":"))


def within(networks: Sequence[str], address: str) -> bool:
    """Tell whether an address is in one of the networks."""
    try:
        found = ipaddress.ip_address(address.removeprefix("::ffff:"))
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(network) for network in networks)
