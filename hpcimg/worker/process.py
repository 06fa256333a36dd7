"""One unprivileged process: starting it, talking to it, killing it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

from hpcimg.errors import Bug, DeadlinePassed, HpcimgError, Interrupted, from_dict
from hpcimg.worker import protocol, starting
from hpcimg.worker.accounts import Account

log = logging.getLogger(__name__)
_READ = 1 << 16
_LINE_MAX = 16 << 20  # an offer holds the config and the manifests of an image
_TO_END_S = 5.0  # after SIGKILL, if the deadline is earlier


class Sandbox(NamedTuple):
    """The limits of a worker.

    It runs as `account` (None: the current one), until `deadline`, a time.monotonic() value; an
    image may have up to `image_bytes` bytes.
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
        self._process = starting.take()
        self._ours = socket.socket(fileno=self._process.socket)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            self._ours.detach()
            self._process.close()

    @property
    def deadline(self) -> float:
        """When it has to be done, a time.monotonic() value."""
        return self._sandbox.deadline

    def end(self) -> None:
        """Kill it and everything it started, if they are still running.

        In a PID namespace all of these are gone when this returns. SIGKILL does not end a process
        that waits for a file system which does not answer, or one that another process traces. This
        does not wait beyond the deadline, or a few seconds if that has passed: then the process is
        abandoned, and the first call raises DeadlinePassed. Do not use files that it can write.
        """
        if self._process.returncode is not None or self._left:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        try:
            self._process.wait(max(_TO_END_S, self.deadline - time.monotonic()))
        except TimeoutError:
            self._left = True
            log.error("process %d of %s cannot be killed", self._process.pid, self.uri)
            raise DeadlinePassed(
                f"{self.uri} was not ready in time",
                why=f"the process that was to {self._doing()} it waits for something that does "
                "not answer, and cannot be ended",
                do="Check the file system of the image and of your home directory.",
            ) from None

    def begin(self, files: Sequence[int]) -> None:
        """Send it its order, with the open files for it. Raises DeadlinePassed."""
        sandbox = self._sandbox
        self.tell(protocol.Start(sandbox.account, sandbox.image_bytes, self._order), files)

    def tell(self, message: protocol.Message, files: Sequence[int] = ()) -> None:
        """Send it one message, with open files. Raises DeadlinePassed if it does not read."""
        self._ours.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            text = protocol.encode(message)
            sent = socket.send_fds(self._ours, [text], files)
            self._ours.sendall(text[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended; its last message, or its exit code, says why
        except TimeoutError:
            raise self._late() from None

    def hear(self, *, wait_s: float = 1.0) -> protocol.Report | None:
        """Return its next message, or None after `wait_s` of silence.

        Raises the error that it reports, DeadlinePassed, Interrupted, and Bug for a message outside
        the protocol.
        """
        while True:
            left = self.deadline - time.monotonic()
            if left <= 0:  # also for one that never stops sending
                raise self._late()
            if (end := self._heard.find(b"\n")) >= 0:
                break
            if not select.select([self._process.stdout], [], [], min(left, wait_s))[0]:
                return None
            more = os.read(self._process.stdout, _READ)
            if not more:
                raise self._ended()
            self._heard += more
            if len(self._heard) > _LINE_MAX:
                raise self._confused("its message is too long")
        line = bytes(self._heard[:end])
        del self._heard[: end + 1]
        try:
            report = protocol.from_worker(line)
        except (ValueError, RecursionError) as error:
            raise self._confused(str(error)) from None
        if isinstance(report, protocol.Failed):
            if report.traceback:
                log.error("%s", report.traceback)
            raise from_dict(report._asdict())
        return report

    def _confused(self, why: str) -> Bug:
        return Bug(f"the {self._doing()} process of {self.uri} sent an invalid message", why=why)

    def _doing(self) -> str:
        return type(self._order).__name__.lower()

    def _late(self) -> DeadlinePassed:
        return DeadlinePassed(
            f"{self.uri} was not ready in time",
            why="the deadline for staging has passed",
        )

    def _ended(self) -> HpcimgError:
        """Return how it ended, when it sends no more."""
        try:
            code = self._process.wait(max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            return self._late()
        os.set_blocking(self._process.stderr, False)  # others may have it open
        try:
            words = os.read(self._process.stderr, _READ)
        except BlockingIOError:
            words = b""
        if words:
            log.error("the %s of %s: %s", self._doing(), self.uri, words.decode(errors="replace"))
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        doing = {
            "fetch": "fetching", "convert": "converting", "verify": "verifying", "share": "sharing",
        }  # fmt: skip
        return Interrupted(f"{doing[self._doing()]} {self.uri} failed", why=f"the worker {how}")
