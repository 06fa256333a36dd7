"""A process without rights that works for this one: started, spoken to, killed at the end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from hpcimg.errors import Bug, DeadlinePassed, Interrupted
from hpcimg.worker import namespaces

_START = "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.worker.main import main; main()"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_READ = 1 << 16
_LINE_MAX = 8 << 20  # an offer holds the config of an image
# What decides how the network is reached. Nothing else of our environment is the child's.
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PASSED_ON = (*_PROXIES, *(name.upper() for name in _PROXIES), *_CERTIFICATES)


class Worker:
    """A process that runs `hpcimg.worker.main`; killed at the end of the context at the latest.

    `uri` is what it works on, for errors; `doing` is "fetch", "convert" or "verify".
    `deadline` is a time.monotonic() value.
    """

    def __init__(self, uri: str, doing: str, *, deadline: float) -> None:
        self.uri = uri
        self.doing = doing
        self._deadline = deadline
        self._heard = bytearray()
        self._ours, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with theirs, namespaces.around_next_process():
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, _ROOT],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                bufsize=0,
                # Of its own, so that what it starts can be killed with it.
                start_new_session=True,
                # An account's .netrc is no place for what all jobs may fetch.
                env={**environment, "NETRC": "/dev/null", "LC_ALL": "C.UTF-8"},
            )
        assert self._process.stdout
        self._stdout = self._process.stdout

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._ours.close()
        self._stdout.close()

    def end(self) -> None:
        """Kill it and what it started, where they still run.

        In a PID namespace all of that is gone when this returns.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def tell(self, files: Sequence[int] = (), **fields: object) -> None:
        """Send it one message, with open files. Raises DeadlinePassed where it does not listen."""
        self._ours.settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            text = json.dumps(fields).encode() + b"\n"
            sent = socket.send_fds(self._ours, [text], files)
            self._ours.sendall(text[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it ended; what it said last, or its exit code, tells why
        except TimeoutError:
            raise self._late() from None

    def hear(self) -> dict[str, Any] | None:
        """Return the next thing it says, or None after a second of silence.

        Raises DeadlinePassed, Interrupted.
        """
        while (end := self._heard.find(b"\n")) < 0:
            left = self._deadline - time.monotonic()
            if left > 0 and not select.select([self._stdout], [], [], min(left, 1.0))[0]:
                return None
            if left <= 0:
                raise self._late()
            more = os.read(self._stdout.fileno(), _READ)
            if not more:
                raise self._ended()
            self._heard += more
            if len(self._heard) > _LINE_MAX:
                raise Bug(f"the process that has to {self.doing} {self.uri} says too much")
        line = bytes(self._heard[:end])
        del self._heard[: end + 1]
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    def _late(self) -> DeadlinePassed:
        return DeadlinePassed(
            f"{self.uri} was not ready in time",
            why="the time that this site allows for staging is over",
        )

    def _ended(self) -> Interrupted:
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return Interrupted(
            f"the {self.doing} of {self.uri} did not end well", why=f"its process {how}"
        )
