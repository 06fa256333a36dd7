"""Run a real daemon for a while: started in the foreground, ended by its pid."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

# Daemons live in sbin, which is not on every user's PATH; nothing else of the caller's
# environment reaches a daemon.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Below the range from which the kernel hands out ports to outgoing connections, so that nobody
# is given a port between our look and the daemon's bind. For the same reason each process of a test
# run has a part of its own.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
PORTS = range(12000, 32000)[int(_WORKER or 0) % 10 :: 10 if _WORKER else 1]

# For what comes soon, on a machine that may have much else to do.
TIMEOUT_S = 60.0


class PartError(RuntimeError):
    """A part did not do what a test asked it to do; the message has its own output."""


def missing_commands(*names: str) -> str:
    """Return a sentence that names the commands not installed here, or an empty string."""
    absent = [name for name in names if shutil.which(name, path=PATH) is None]
    if not absent:
        return ""
    return f"not installed here: {', '.join(absent)} (run tests/install-packages as root)"


def free_ports(count: int) -> list[int]:
    """Return distinct TCP ports that nobody listens on, on any address."""
    found: list[int] = []
    # Not by the seed that pytest-randomly sets, which is the same in every test and process.
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise PartError(f"found only {len(found)} of {count} free ports")


def listens(port: int) -> bool:
    """Tell whether somebody accepts connections on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], *, what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll until the condition holds; at the deadline raise PartError, which says what for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise PartError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)


class Daemon:
    """A foreground process that ends on request, or when the thread that started it ends.

    The second is the kernel's doing (parent death signal): a test run that is killed leaves no
    daemon behind. So start a daemon from a thread that lives as long as the daemon shall.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        output: Path,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the daemon; nothing runs yet.

        output: the file that stdout and stderr are appended to. user: an account to run under,
        with the group of the same name. env: all that it gets beside PATH and LC_ALL.
        """
        self._argv = list(argv)
        self._account = ["--reuid", user, "--regid", user, "--clear-groups"] if user else []
        self._output = output
        self._env = {"PATH": PATH, "LC_ALL": "C.UTF-8", **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, in a session of its own so that Ctrl-C reaches the test run alone."""
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *self._account, *self._argv],
                cwd="/",
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return the process id, 0 if it is not running."""
        return self._process.pid if self._process else 0

    def expect_running(self) -> None:
        """Raise PartError with the end of its output if it has ended by itself."""
        if self._process is None or self._process.poll() is not None:
            output = self._output.read_text(errors="replace")[-3000:]
            raise PartError(f"{self._argv[0]} ended by itself:\n{output}")

    def wait_for(self, port: int, *, what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until it accepts connections on a loopback port; `what` it is, for PartError."""

        def answers() -> bool:
            self.expect_running()
            return listens(port)

        wait_until(answers, timeout_s=timeout_s, what=what)

    def stop(self, *, grace_s: float = 5.0) -> None:
        """Send SIGTERM, then SIGKILL after the grace period, and reap. May be called again."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Send SIGKILL and reap."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Server(ABC):
    """A daemon with a port and a directory of its own. A context manager."""

    name: str  # begins the directory's name
    port: int  # of 127.0.0.1
    directory: Path

    @abstractmethod
    def command(self) -> list[str]:
        """Write the daemon's files into the directory; return the command that starts it."""

    def __enter__(self) -> Self:
        """Start with an empty directory."""
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.log = self.directory / "log"
        self._daemon = Daemon(self.command(), output=self.log)
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and remove the directory."""
        self._daemon.stop()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        self._daemon.start()
        self._daemon.wait_for(self.port, what=f"the {self.name}")

    def stop(self) -> None:
        """Stop; connections are refused from now on."""
        self._daemon.stop()

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self._daemon.pid != 0
