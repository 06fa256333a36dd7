"""Answer the other nodes of the job: who leads, its progress, what the image is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from hpcimg.errors import HpcimgError
from hpcimg.peers import asking, credentials, order
from hpcimg.peers.asking import Line
from hpcimg.peers.desk import Desk
from hpcimg.peers.engine import Torrent

_FIRST_S = 5.0  # within which a question must arrive
_QUESTION_MAX = 64 << 10
_SPARE = 16  # connections beyond one per node
_FROM_ONE = 4  # connections from one address


class Guest:
    """A node that asks. `whole` tells that it has the image."""

    def __init__(self, line: Line, node: str, nonce: str) -> None:
        self.line = line
        self.node = node
        self.nonce = nonce
        self.port = 0
        self.index = 0
        self.whole = False
        self.news = asyncio.Event()


class Answers:
    """Tells each node that asks the state of this one. `changed` is set when a guest's changes."""

    def __init__(self, desk: Desk, *, nodes: Sequence[str], networks: Sequence[str]) -> None:
        self._desk = desk
        self._networks = networks
        self._most = len(nodes) + _SPARE
        self._others = len(nodes) - 1
        self._open: list[str] = []  # addresses
        self._guests: list[Guest] = []
        self._members: list[Guest] = []
        self._count = 1  # members that are told about each other, including this node
        self._seen: set[str] = set()
        self._expected: set[str] = set()
        self._state: tuple[str, ...] = ("electing",)
        self._torrent: Torrent | None = None
        self._port = 0
        self._ended = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()

    async def listen(self, port: int) -> bool:
        """Start to answer; False if the port is taken."""
        try:
            self._server = await asyncio.start_server(self._answer, None, port, backlog=1024)
        except OSError:
            return False
        return True

    def is_electing(self) -> None:
        """Set the state: it is not known yet who leads."""
        self._set("electing")

    def follows(self, node: str) -> None:
        """Set the state: another node leads."""
        self._set("follow", node)

    def leads(self, phase: str, done: int) -> None:
        """Set the state: this node leads; `done` counts the bytes of the phase."""
        # The guests get a line once a second anyway.
        moved = self._state[0] != "progress"
        self._state = ("progress", phase.replace(" ", "-") or "-", str(done))
        if moved:
            self._wake()

    def has(self, torrent: Torrent, port: int) -> None:
        """Set the state: this node has the image, and sends it at the port."""
        self._torrent, self._port = torrent, port
        self._members = [guest for guest in self._guests if guest.port]
        self._count = 1 + len(self._members)
        for index, guest in enumerate(self._members, 1):
            guest.index = index
        self._set("have")

    @property
    def waiting(self) -> int:
        """The number of connected nodes that do not have the image yet."""
        return sum(not guest.whole for guest in self._guests)

    @property
    def all_came(self) -> bool:
        """Whether each node of the job has asked."""
        return len(self._seen) >= self._others

    def expect(self, nodes: set[str]) -> None:
        """Note which nodes need the image, and so will ask this one if it leads."""
        self._expected = nodes - {guest.node for guest in self._guests}

    @property
    def expecting(self) -> bool:
        """Whether a node that needs the image has not asked yet."""
        return bool(self._expected)

    async def end(self) -> None:
        """Tell the connected nodes that this is the end, and stop answering."""
        self._ended = True
        self._wake()
        if self._server is not None:
            self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)

    def _set(self, *state: str) -> None:
        self._state = state
        self._wake()

    def _wake(self) -> None:
        for guest in self._guests:
            guest.news.set()
        self.changed.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer, most=_QUESTION_MAX)
        address = line.address
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open.append(address)
        try:
            busy = len(self._open) > self._most or self._open.count(address) > _FROM_ONE
            if not busy and asking.within(self._networks, address):
                with contextlib.suppress(OSError, TimeoutError, HpcimgError):
                    await self._meet(line)
        finally:
            self._open.remove(address)
            line.close()

    async def _meet(self, line: Line) -> None:
        async with asyncio.timeout(_FIRST_S):
            words = await line.hear(_FIRST_S)
        match words:
            case ["ask", credential]:
                read = await self._desk.read(credentials.ASK, credential)
            case _:
                return
        if read is None:
            return
        node, nonce, _ = read
        guest = Guest(line, node, nonce)
        line.say("hello", await self._desk.sign(credentials.HELLO, node, nonce))
        self._guests.append(guest)
        self._seen.add(node)
        self._expected.discard(node)
        listening = asyncio.create_task(self._listen_to(guest))
        try:
            await self._keep_told(guest)
        finally:
            listening.cancel()
            self._guests.remove(guest)
            self.changed.set()

    async def _listen_to(self, guest: Guest) -> None:
        while True:
            match await guest.line.hear(3600.0):
                case ["port", port] if port.isdecimal() and len(port) < 6 and not guest.port:
                    guest.port = int(port)
                case ["whole"]:
                    guest.whole = True
                case _:
                    guest.line.close()
                    return
            guest.news.set()
            self.changed.set()

    async def _keep_told(self, guest: Guest) -> None:
        sent = False
        while True:
            guest.news.clear()
            if self._ended:
                guest.line.say("end")
                await guest.line.flush()
                return
            if self._state[0] != "have":
                guest.line.say(*self._state)
            elif sent:
                guest.line.say("here")
            elif guest.port:
                await self._send_image(guest)
                sent = True
            await guest.line.flush()
            if self._state[0] == "follow":
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(asking.TELL_EVERY_S):
                    await guest.news.wait()

    async def _send_image(self, guest: Guest) -> None:
        torrent = self._torrent
        assert torrent
        if not guest.index:
            self._members.append(guest)
            guest.index = len(self._members)
        word = f"{torrent.name()} {torrent.salt.hex()}"
        credential = await self._desk.sign(credentials.IMAGE, guest.node, guest.nonce, word)
        others = [
            (self._members[other - 1].line.address, self._members[other - 1].port)
            for other in order.neighbours(guest.index, self._count)
            if other
        ]
        said = asking.image_line(
            torrent, index=guest.index, count=self._count, port=self._port, members=others
        )
        guest.line.say("image", credential, said)
