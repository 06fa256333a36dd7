"""A child process for the site's file system, where a system call may block without end.

It answers one question at a time. If it does not answer, it is killed and abandoned: it ends when
its current call returns. It has no files open but those that were passed to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from hpcimg import processes, programs
from hpcimg.tier.places import Trouble

_MESSAGE_MAX = 96 << 10
_TO_END_S = 1.0
Fields = dict[str, Any]


class Channel:
    """The child's end of the socket. If the parent is gone, each method ends the process."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def hear(self, timeout_s: float) -> tuple[Fields, int | None] | None:
        """Return the next question, and a file descriptor or None; None if none arrives in time."""
        if not select.select([self._end], [], [], timeout_s)[0]:
            return None
        data, files, _, _ = socket.recv_fds(self._end, _MESSAGE_MAX, 1)
        if not data:
            os._exit(0)
        return json.loads(data), (files[0] if files else None)

    def say(self, **fields: Any) -> None:
        """Report progress."""
        self._send({"said": fields})

    def answer(self, fields: Fields) -> None:
        self._send({"answer": fields})

    def fail(self, why: str) -> None:
        self._send({"trouble": why})

    def _send(self, fields: Fields) -> None:
        try:
            self._end.send(json.dumps(fields).encode())
        except OSError:
            os._exit(0)


class Child:
    """A process that runs `work` as an account (None: with the rights of this process)."""

    def __init__(self, work: Callable[[Channel], None], *, uid_gid: tuple[int, int] | None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end_with_us = programs.die_with_parent()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _keep_only(theirs.fileno())
                if uid_gid:
                    _become(*uid_gid)
                end_with_us()  # after setuid, which resets it in the kernel
                work(Channel(theirs))
            finally:
                os._exit(0)
        theirs.close()
        self._end = ours
        self.gone = False

    def tell(self, **question: Any) -> None:
        """Send a message that has no answer. It is lost if the socket is full."""
        if not self.gone:
            with contextlib.suppress(OSError):
                self._end.send(json.dumps(question).encode(), socket.MSG_DONTWAIT)

    def ask(
        self,
        *,
        patience_s: float,
        until: float,
        heard: Callable[[Fields], None] = lambda _: None,
        file: int | None = None,
        **question: Any,
    ) -> Fields:
        """Return the answer to a question. `heard` is called with each progress report.

        Raises Trouble if the child reports an error, sends nothing for `patience_s`, or has not
        answered by `until`, a time.monotonic() value. In the last two cases it is killed.
        """
        if self.gone:
            raise Trouble("its process was abandoned earlier")
        try:
            files = [] if file is None else [file]
            socket.send_fds(self._end, [json.dumps(question).encode()], files)
            for fields in self._heard(patience_s, until):
                if "said" not in fields:
                    break
                heard(fields["said"])
            else:
                raise Trouble("its process has ended")
        except OSError as error:
            self.end()
            raise Trouble(f"its process has ended: {error.strerror}") from None
        except BaseException:  # otherwise the child could go on writing to the file
            self.end()
            raise
        if "trouble" in fields:
            raise Trouble(str(fields["trouble"]))
        answer: Fields = fields["answer"]
        return answer

    def _heard(self, patience_s: float, until: float) -> Iterator[Fields]:
        while True:
            wait_s = min(patience_s, until - time.monotonic())
            if wait_s <= 0 or not select.select([self._end], [], [], wait_s)[0]:
                self.end()
                raise Trouble(
                    f"it did not answer for {patience_s:.0f} s"
                    if wait_s == patience_s
                    else "it is too slow"
                )
            data = self._end.recv(_MESSAGE_MAX)
            if not data:
                self.end()
                return
            yield json.loads(data)

    def end(self) -> None:
        """Kill the child. Abandon it if it does not end."""
        if self.gone:
            return
        self.gone = True
        self._end.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            processes.wait(self._pid, _TO_END_S)


def _keep_only(end: int) -> None:
    # Close everything else: an inherited file would keep the parent's flock(2) locks.
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    programs.close_all_but(end)


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
