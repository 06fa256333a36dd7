"""A process that looks at the site's file system, since nothing can interrupt who waits for one.

It is asked one thing at a time, and left behind where it stays silent: it ends with the call that
it is in. It has no file open but those that it is handed.
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

from hpcimg import programs
from hpcimg.locks import load_leases
from hpcimg.tier.places import Trouble

_MESSAGE_MAX = 96 << 10
_TO_END_S = 1.0
Fields = dict[str, Any]


class Channel:
    """The child's end. `hear` gives what is asked, and a file where one came with it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def hear(self, timeout_s: float) -> tuple[Fields, int | None] | None:
        """Return the next question, None where there is none in this time."""
        if not select.select([self._end], [], [], timeout_s)[0]:
            return None
        data, files, _, _ = socket.recv_fds(self._end, _MESSAGE_MAX, 1)
        if not data:
            os._exit(0)
        return json.loads(data), (files[0] if files else None)

    def say(self, **fields: Any) -> None:
        """Say that the work goes on, and how far it is."""
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
    """A process with the rights of an account (None: ours) in which `work` runs until it ends."""

    def __init__(self, work: Callable[[Channel], None], *, uid_gid: tuple[int, int] | None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end_with_us = programs.die_with_parent()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _keep_only(theirs.fileno())
                if uid_gid:
                    load_leases()  # Python may be where the account cannot read
                    _become(*uid_gid)
                end_with_us()  # after the uid has changed: the kernel forgets it then
                work(Channel(theirs))
            finally:
                os._exit(0)
        theirs.close()
        self._end = ours
        self.gone = False

    def tell(self, **question: Any) -> None:
        """Say something that has no answer; where it does not listen, that is lost."""
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
        """Return the answer; `heard` is told what is said before.

        Raises Trouble where the child reports it, says nothing for `patience_s`, or is not done
        by `until`, a time.monotonic() value. In the last two cases it is ended.
        """
        if self.gone:
            raise Trouble("it was given up before")
        try:
            files = [] if file is None else [file]
            socket.send_fds(self._end, [json.dumps(question).encode()], files)
            for fields in self._heard(patience_s, until):
                if "said" not in fields:
                    break
                heard(fields["said"])
            else:
                raise Trouble("the process that looks at it is gone")
        except OSError as error:
            self.end()
            raise Trouble(f"the process that looks at it is gone: {error.strerror}") from None
        except BaseException:  # it may still write to the file
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
        """Kill it, and leave it behind where it does not end."""
        if self.gone:
            return
        self.gone = True
        self._end.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        late = time.monotonic() + _TO_END_S
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self._pid, os.WNOHANG) == (0, 0) and time.monotonic() < late:
                time.sleep(0.01)


def _keep_only(end: int) -> None:
    # Locks of ours are in other files, and stay while any process has them open.
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != end:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
