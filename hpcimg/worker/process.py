"""A process without rights that works for this one: started, spoken to, killed at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import NamedTuple

from hpcimg.errors import Bug, DeadlinePassed, HpcimgError, Interrupted
from hpcimg.worker import protocol, starting
from hpcimg.worker.accounts import Account

log = logging.getLogger(__name__)
_READ = 1 << 16
_LINE_MAX = 16 << 20  # an offer holds the config and the manifests of an image
_TO_END_S = 5.0  # after SIGKILL, where the deadline is nearer


class Sandbox(NamedTuple):
    """What a worker is confined to.

    It runs as `account` (None: as we do), until `deadline`, a time.monotonic() value;
    an image may have `image_bytes` bytes.
    """

    account: Account | None
    deadline: float
    image_bytes: int


class Worker:
    """A process that runs `hpcimg.worker.main`; killed at the end of the context at the latest."""

    def __init__(self, order: protocol.Order, sandbox: Sandbox) -> None:
        self.uri = order.uri
        self._order = order
        self._sandbox = sandbox
        self._heard = bytearray()
        self._left = False
        self._process, self._ours = starting.take()
        assert self._process.stdout
        assert self._process.stderr
        self._stdout = self._process.stdout
        self._stderr = self._process.stderr

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            self._ours.close()
            self._stdout.close()
            self._stderr.close()

    @property
    def deadline(self) -> float:
        """Until when it may work, a time.monotonic() value."""
        return self._sandbox.deadline

    def end(self) -> None:
        """Kill it and what it started, where they still run.

        In a PID namespace all of that is gone when this returns. SIGKILL does not
        reach a process that waits for a file system which does not answer, nor does one
        go that another process traces. It is not waited for beyond the deadline, or
        a few seconds where that is over: then it is left to whoever adopts it, and the
        first call of this raises DeadlinePassed. What it can write to is not to be used.
        """
        if self._process.returncode is not None or self._left:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        try:
            self._process.wait(max(_TO_END_S, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._left = True
            log.error("process %d of %s cannot be ended", self._process.pid, self.uri)
            raise DeadlinePassed(
                f"{self.uri} was not ready in time",
                why=f"the process that was to {self._doing()} it waits for something that does "
                "not answer, and cannot be ended",
                do="Check the file system that the image or your home is on.",
            ) from None

    def begin(self, files: Sequence[int]) -> None:
        """Give it its order, with the open files that belong to it. Raises DeadlinePassed."""
        sandbox = self._sandbox
        self.tell(protocol.Start(sandbox.account, sandbox.image_bytes, self._order), files)

    def tell(self, message: protocol.Message, files: Sequence[int] = ()) -> None:
        """Send it one message, with open files. Raises DeadlinePassed where it does not listen."""
        self._ours.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            text = protocol.encode(message)
            sent = socket.send_fds(self._ours, [text], files)
            self._ours.sendall(text[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it ended; what it said last, or its exit code, tells why
        except TimeoutError:
            raise self._late() from None

    def hear(self) -> protocol.Report | None:
        """Return the next thing it says, or None after a second of silence.

        Raises DeadlinePassed, Interrupted, and Bug where it is none of the protocol's.
        """
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0:  # also for one who never ends to speak
                raise self._late()
            if (end := self._heard.find(b"\n")) >= 0:
                break
            if not select.select([self._stdout], [], [], min(left, 1.0))[0]:
                return None
            more = os.read(self._stdout.fileno(), _READ)
            if not more:
                raise self._ended()
            self._heard += more
            if len(self._heard) > _LINE_MAX:
                raise self._confused("its message has no end")
        line = bytes(self._heard[:end])
        del self._heard[: end + 1]
        try:
            return protocol.from_worker(line)
        except (ValueError, RecursionError) as error:
            raise self._confused(str(error)) from None

    def _confused(self, why: str) -> Bug:
        return Bug(f"the {self._doing()} process of {self.uri} cannot be understood", why=why)

    def _doing(self) -> str:
        return type(self._order).__name__.lower()

    def _late(self) -> DeadlinePassed:
        return DeadlinePassed(
            f"{self.uri} was not ready in time",
            why="the deadline for staging has passed",
        )

    def _ended(self) -> HpcimgError:
        """Return what became of it, once it says no more."""
        try:
            code = self._process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return self._late()
        os.set_blocking(self._stderr.fileno(), False)  # others may have it open
        if words := self._stderr.read(_READ):
            log.error("the %s of %s: %s", self._doing(), self.uri, words.decode(errors="replace"))
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        doing = {
            "fetch": "fetching", "convert": "converting", "verify": "verifying", "share": "sharing",
        }  # fmt: skip
        return Interrupted(f"{doing[self._doing()]} {self.uri} failed", why=f"the worker {how}")
