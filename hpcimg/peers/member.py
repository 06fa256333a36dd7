"""This node as a member of a job's swarm: the part that runs in the unprivileged worker.

    electing -> leading    root fetches the image by another way; then it is sent to the others
             -> following  the image is fetched from the others, and then sent on

A leader that is gone or makes no progress is passed over, and the next node leads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # resolves names; load before privileges are dropped
import contextlib
import encodings.idna  # noqa: F401
import os
import time
from collections.abc import Sequence
from typing import Protocol

from hpcimg.errors import Unreachable
from hpcimg.fetch.contract import Declined
from hpcimg.peers import order
from hpcimg.peers.answering import Answers
from hpcimg.peers.asking import (
    SILENCE_S,
    Absent,
    Asker,
    Elsewhere,
    Found,
    Line,
    Lost,
    Outcome,
    Undecided,
)
from hpcimg.peers.desk import Desk
from hpcimg.peers.engine import make_torrent
from hpcimg.peers.transfer import Transfer
from hpcimg.worker import protocol

_FIRST_ONLY_S = 1.0  # how long only the first node in the order is asked
_AT_A_TIME = 8  # nodes asked in turn before the first one is asked again
_BEHIND = 16  # later nodes that are asked, since one may lead already if this node is late
_ELECTION_S = 20.0  # the longest election, counted from when all nodes should have started
_LEADERS = 3  # failed leaders before this node gives up
_AGAIN_S = 0.1
_LOOK_EVERY_S = 0.2
_DRY_S = 2.0  # without a byte, before this node connects to the leader as well
_LINGER_LOOK_S = 0.5
_ORPHANED_S = 5.0  # without a byte, once the leader is gone


class Parent(Protocol):
    """The process that started this one."""

    def fileno(self) -> int:
        """Return the socket, which is readable when there is a message."""

    def hear(self) -> tuple[protocol.Start | protocol.Answer, list[int]]:
        """Return the next message, and the file descriptors sent with it."""

    def holds_more(self) -> bool:
        """Tell whether another message was received together with the last one."""

    def say(self, report: protocol.Report) -> None:
        """Send a report."""


def share(wanted: protocol.Share, files: Sequence[int], parent: Parent) -> None:
    """Carry out the order. Raises HpcimgError, OSError."""
    asyncio.run(_Member(wanted, files, parent).run())


class _Member:
    def __init__(self, wanted: protocol.Share, files: Sequence[int], parent: Parent) -> None:
        self._wanted = wanted
        [signer] = files
        self._file = -1
        self._parent = parent
        self._desk = Desk(signer)
        self._told: asyncio.Queue[protocol.Wanted | Declined] = asyncio.Queue()
        self._published: asyncio.Future[tuple[int, int]]
        self._began = time.monotonic()
        self._all_began = self._began + wanted.wait_s
        self._gone: set[str] = set()
        self._lost = 0  # the number of failed leaders
        self._leader = ""  # the node that has the image
        self._order = order.of_leaders(wanted.job, wanted.wanted, wanted.nodes)

    async def run(self) -> None:
        wanted = self._wanted
        self._transfer = Transfer(
            order.swarm_ports(wanted.port),
            networks=wanted.networks,
            rate=wanted.rate,
            directory=wanted.directory,
        )
        await self._desk.open()
        self._published = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._parent.fileno(), self._hear)
        # Errors of single connections are expected; asyncio would print tracebacks.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        port = order.question_port(wanted.port, wanted.job)
        self._asker = Asker(
            self._desk,
            port=port,
            networks=wanted.networks,
            listens=self._transfer.port,
            wait_s=wanted.wait_s,
            patience_s=wanted.patience_s,
        )
        self._answers = Answers(self._desk, nodes=wanted.nodes, networks=wanted.networks)
        self._may_lead = await self._answers.listen(port)
        try:
            await self._take_part()
        finally:
            await self._answers.end()
            self._transfer.end()

    def _hear(self) -> None:
        self._heed(*self._parent.hear())
        while self._parent.holds_more():  # for these the socket is not readable
            self._heed(*self._parent.hear())

    def _heed(self, message: protocol.Start | protocol.Answer, files: list[int]) -> None:
        match message:
            case protocol.Advance(phase, done):
                self._answers.leads(phase, done)
            case protocol.Published(size):
                self._published.set_result((files[0], size))
            case protocol.Wanted() | Declined():
                self._close_file()
                self._file = files[0] if files else -1
                self._told.put_nowait(message)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    async def _take_part(self) -> None:
        while (found := await self._elect()) is not None:
            leader = _Leader(found.line)
            self._parent.say(protocol.Found())
            if isinstance(await self._told.get(), Declined) or await self._fetch(found, leader):
                await self._after(found, leader)
                return
            found.line.close()
            self._pass_over(self._leader)
        await self._lead()

    async def _lead(self) -> None:
        self._answers.leads("asking", 0)
        self._close_file()  # left by an attempt to follow; another process will write it
        self._parent.say(protocol.Leading())
        file, size = await self._published
        self._answers.leads("checking", size)
        torrent = await asyncio.to_thread(make_torrent, file, size)
        self._transfer.share(torrent, file, whole=True)
        self._answers.has(torrent, self._transfer.port)
        await self._linger(None)

    async def _after(self, found: Found, leader: _Leader) -> None:
        """Send the image on, once it is on this node."""
        file, _ = await self._published
        self._transfer.begin_again()
        self._transfer.share(found.torrent, file, whole=True)
        self._connect(found)
        self._answers.has(found.torrent, self._transfer.port)
        found.line.say("whole")
        await self._linger(leader)

    async def _linger(self, leader: _Leader | None) -> None:
        """Go on while other nodes may need this one, at most for `linger_s`.

        A follower learns from its `leader` when all nodes have the image.
        """
        until = time.monotonic() + self._wanted.linger_s
        if leader:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wanted.linger_s):
                    await leader.silent.wait()
            if not leader.said_end:  # it failed, and the others will soon ask this node
                await asyncio.sleep(max(0.0, min(2 * _ORPHANED_S, until - time.monotonic())))
        while (now := time.monotonic()) < until:
            starting = not self._answers.all_came and now < self._all_began
            late = starting or self._answers.expecting
            if not self._answers.waiting and (leader or not late):
                break
            self._answers.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_LOOK_S):
                    await self._answers.changed.wait()

    async def _elect(self) -> Found | None:
        """Return another node's image, None if this node has to lead. Raises Unreachable."""
        self._answers.is_electing()
        ahead = self._order[: self._order.index(self._wanted.node)]
        until = max(time.monotonic(), self._all_began) + self._patience()
        while time.monotonic() < until:
            names = [name for name in ahead if name not in self._gone]
            if not names:
                return await self._first()
            alone = time.monotonic() < self._began + _FIRST_ONLY_S
            for name in names[: 1 if alone else _AT_A_TIME]:
                outcome = await self._follow(name)
                if isinstance(outcome, Found):
                    return outcome
                if isinstance(outcome, Lost):
                    until = time.monotonic() + self._patience()
                    break
            await asyncio.sleep(_AGAIN_S)
        raise Unreachable("the nodes of the job do not agree on who fetches")

    def _patience(self) -> float:
        """Return how long an election may take: until all nodes noticed that a leader is gone."""
        return _ELECTION_S + (self._wanted.patience_s if self._lost else 0.0)

    async def _first(self) -> Found | None:
        """Return None to lead, unless a node later in the order leads already."""
        after = self._order[self._order.index(self._wanted.node) + 1 :]
        names = [name for name in after if name not in self._gone][:_BEHIND]
        asked = [asyncio.create_task(self._consult_later(name)) for name in names]
        leaders, without = set(), set()
        try:
            for task in asyncio.as_completed(asked):
                name, outcome = await task
                match outcome:
                    case Found():
                        return outcome
                    case Elsewhere(leader) if leader not in self._gone:
                        leaders.add(leader)
                    case Elsewhere() | Undecided():
                        without.add(name)
        finally:
            for each in asked:
                each.cancel()
        for name in (leaders & set(self._order)) - {self._wanted.node}:
            found = await self._follow(name)
            if isinstance(found, Found):
                return found
        self._answers.expect(without)
        if not self._may_lead:
            raise Unreachable("this node cannot lead", why="its control port is in use")
        return None

    async def _follow(self, name: str) -> Found | Lost | None:
        """Ask a node earlier in the order, and the one that it follows; note which are gone."""
        outcome = await self._consult(name)
        if isinstance(outcome, Elsewhere):
            name = outcome.node
            if name in self._gone or name not in self._order or name == self._wanted.node:
                return None
            outcome = await self._consult(name)
        match outcome:
            case Found():
                return outcome
            case Lost():
                self._pass_over(name)
                return outcome
            case Absent() if time.monotonic() > self._all_began:
                self._gone.add(name)
        return None

    def _pass_over(self, name: str) -> None:
        self._gone.add(name)
        self._answers.is_electing()
        self._lost += 1
        if self._lost >= _LEADERS:
            raise Unreachable("no node of the job sends the image to the others")

    async def _consult_later(self, name: str) -> tuple[str, Outcome]:
        """Ask a node later in the order, without waiting for it to lead."""
        return name, await self._consult(name, only_leading=True)

    async def _consult(self, name: str, *, only_leading: bool = False) -> Outcome:
        def heard(phase: str, done: int) -> None:
            self._answers.follows(name)
            self._parent.say(protocol.Awaiting(f"{phase} on {name}", done))

        outcome = await self._asker.consult(name, heard=heard, only_leading=only_leading)
        if isinstance(outcome, Found):
            self._leader = name
            self._answers.follows(name)
        return outcome

    async def _fetch(self, found: Found, leader: _Leader) -> bool:
        """Fetch the image from the other nodes; False if they make no progress."""
        os.ftruncate(self._file, 0)
        size = found.torrent.size_bytes
        self._transfer.share(
            found.torrent, self._file, whole=False, index=found.number, count=found.among
        )
        self._connect(found)
        last, moved, connected = -1, time.monotonic(), False
        while True:
            done, whole = self._transfer.received()
            now = time.monotonic()
            if done != last:
                last, moved = done, now
                self._parent.say(protocol.Moved(None, done, size))
            if whole:
                break
            dry_s = now - moved
            if dry_s > (_ORPHANED_S if leader.silent.is_set() else self._wanted.patience_s):
                self._reopen()
                return False
            if dry_s > _DRY_S and not connected:
                self._transfer.connect(*found.leader)
                connected = True
            await asyncio.sleep(_LOOK_EVERY_S)
        self._transfer.end()
        self._close_file()
        self._parent.say(protocol.Done())
        return True

    def _reopen(self) -> None:
        self._transfer.begin_again()
        self._parent.say(protocol.Rewound(None))

    def _connect(self, found: Found) -> None:
        for address, port in found.members:
            self._transfer.connect(address, port)
        if 0 in order.neighbours(found.number, found.among):
            self._transfer.connect(*found.leader)


class _Leader:
    """Listens to the leader until its last message, which sets `silent`; `said_end` if orderly."""

    def __init__(self, line: Line) -> None:
        self.silent = asyncio.Event()
        self.said_end = False
        self._listening = asyncio.create_task(self._listen(line))

    async def _listen(self, line: Line) -> None:
        while words := await line.hear(SILENCE_S):
            if words == ["end"]:
                self.said_end = True
                break
        self.silent.set()
