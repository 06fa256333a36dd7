"""One node of the job asks another: is it the leader, how far is it, what is the image?

Both sides of one TCP connection say a line at a time. `ask`, `hello` and `image` carry
credentials of munge's; what is said between them only tells how long to wait.
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
_DIGESTED_PER_S = 200e6  # bytes: a leader that looks through the whole image says nothing new


class Absent(NamedTuple):
    """The node cannot be asked: nobody listens there, or nobody of root's."""


class Lost(NamedTuple):
    """The node was there, and is gone or gets nowhere."""


class Elsewhere(NamedTuple):
    """The node follows another one."""

    node: str


class Found(NamedTuple):
    """Another node has the image: what it is, and whom to get it from."""

    torrent: Torrent
    number: int
    among: int
    members: tuple[tuple[str, int], ...]
    leader: tuple[str, int]
    line: Line


class Line:
    """A connection to another node, a line at a time. No line may be longer than `most`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, most: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._most = most
        self._heard = b""

    async def hear(self, silence_s: float) -> list[str]:
        """Return the words of the next line; none after such a silence, or where none follows."""
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
        """Send a line. What cannot be sent shows when the other side is heard no more."""
        self._writer.write(" ".join(words).encode() + b"\n")

    async def flush(self) -> None:
        """Wait until what was said is on its way. Raises OSError, TimeoutError."""
        async with asyncio.timeout(_FLUSH_S):
            await self._writer.drain()

    @property
    def address(self) -> str:
        """The other side's address."""
        peer = self._writer.get_extra_info("peername") or ("",)
        text = str(peer[0]).partition("%")[0]
        return text.removeprefix("::ffff:")

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._writer.close()


class Asker:
    """Asks the nodes of one job.

    `port` is where they are asked; `listens` at which port our part of a swarm is. A node that
    gets nowhere for `patience_s` seconds is lost, after the `wait_s` in which all begin.
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
    ) -> Found | Elsewhere | Absent | Lost:
        """Ask a node, and wait until it has the image or is none to wait for.

        `heard` is told its phase and bytes. With `only_leading`, a node that is not the
        leader yet is Absent.
        """
        line = await self._connect(node)
        if line is None:
            return Absent()
        outcome: Found | Elsewhere | Absent | Lost = Lost()
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
    ) -> Found | Elsewhere | Absent | Lost:
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
        # It may wait so long for another one before it leads.
        moved, seen, size = time.monotonic() + self._wait_s, ["electing"], 0
        while True:
            words = await line.hear(SILENCE_S)
            if words[:1] == ["image"]:
                return await self._image(node, nonce, line, words[1:])
            match words:
                case ["follow", other]:
                    return Elsewhere(other)
                case ["electing"] if only_leading:
                    return Absent()
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
        """Read what the image is: its torrent is what root over there has signed."""
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
