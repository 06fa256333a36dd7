"""Start a worker process, early if it is known that one will be needed.

Loading Python modules takes a worker longer than fetching a small image. A worker that is started
early loads them while its parent still loads its own. It has root's rights until it gets its
order, which only its parent can send.

Imports only what takes hardly any time: os and ctypes.
"""

from __future__ import annotations

import ctypes
import os
import sys

from hpcimg import libc, processes, programs
from hpcimg.worker import namespaces

# Collecting garbage while modules are loaded finds none, and takes a tenth of the time.
_PROGRAM = (
    "import gc, sys; gc.disable(); sys.path.insert(0, sys.argv[1]); "
    "from hpcimg.worker.main import main; main()"
)
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Environment variables that decide how to reach the network. No others are passed on.
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PASSED_ON = (*_PROXIES, *(name.upper() for name in _PROXIES), *_CERTIFICATES)
_AF_UNIX, _SOCK_STREAM, _SIGKILL = 1, 1, 9
_FIRST = -20  # the nice value of what goes before all others
_OURS = os.getpriority(os.PRIO_PROCESS, 0)  # that of slurmd, in Prolog


class Process:
    """A started worker that waits for its order.

    `socket`, `stdout` and `stderr` are descriptors: our end of the socket that is its standard
    input, and the ends to read. `returncode` is as in subprocess, None until it was waited for.
    """

    __slots__ = ("pid", "returncode", "socket", "stderr", "stdout")

    def __init__(self, pid: int, *, socket: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.socket = socket
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None

    def wait(self, timeout_s: float) -> int:
        """Return its exit code when it has ended, minus the signal if it was killed.

        Raises TimeoutError.
        """
        if self.returncode is None:
            status = processes.wait(self.pid, timeout_s)
            if status is None:
                raise TimeoutError
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Kill it, if it has not been waited for."""
        if self.returncode is None:
            os.kill(self.pid, _SIGKILL)

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in (self.socket, self.stdout, self.stderr):
            os.close(descriptor)


_early: list[Process] = []
CONVERT = "convert"


def early(work: str) -> None:
    """Start the process for the next worker, to fetch from a URI scheme, or to CONVERT.

    What cannot be started now is tried again by `take`, where it can be said.
    """
    try:
        _early.append(_start(work))
    except OSError:
        pass


def hurry() -> None:
    """Go before everything else on the node until `settle`, if this has root's rights.

    For the time in which modules are loaded, by a process that many others wait for. They have just
    been started, and would otherwise delay it. Workers that are started meanwhile do likewise.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
    except OSError:
        pass


def settle(nice: int = _OURS) -> None:
    """Take turns with all others again; a worker is told the nice value by its arguments."""
    if os.getpriority(os.PRIO_PROCESS, 0) == _FIRST:
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def take() -> Process:
    """Return the process that was started early, or start one. Raises OSError."""
    return _early.pop() if _early else _start()


def end_early() -> None:
    """End a process that was started early and not used."""
    while _early:
        process = _early.pop()
        process.kill()
        process.wait(float("inf"))
        process.close()


def _start(*words: str) -> Process:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    ours, theirs = _socket_pair()
    said, says = os.pipe()
    # Not inherited: its reader would wait for a process that cannot be killed.
    errors, fails = os.pipe()
    try:
        with namespaces.AroundNextProcess():
            # A session of its own, so that its children can be killed with it.
            pid = programs.spawn(
                [sys.executable, "-I", "-c", _PROGRAM, _ROOT, str(_OURS), *words],
                {**environment, "LC_ALL": "C.UTF-8"},
                [
                    (os.POSIX_SPAWN_DUP2, theirs, 0),
                    (os.POSIX_SPAWN_DUP2, says, 1),
                    (os.POSIX_SPAWN_DUP2, fails, 2),
                    *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inherited()),
                ],
            )
    except BaseException:
        for descriptor in (ours, said, errors):
            os.close(descriptor)
        raise
    finally:
        for descriptor in (theirs, says, fails):
            os.close(descriptor)
    return Process(pid, socket=ours, stdout=said, stderr=errors)


def _socket_pair() -> tuple[int, int]:
    """Return two connected sockets that are not inherited. Raises OSError.

    The module socket takes as long to import as all else here.
    """
    made = (ctypes.c_int * 2)()
    libc.call("socketpair", _AF_UNIX, _SOCK_STREAM | os.O_CLOEXEC, 0, made)
    return made[0], made[1]


def _inherited() -> list[int]:
    """Return what a program started here would have open, beside the standard three."""
    found = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            if descriptor > 2 and os.get_inheritable(descriptor):
                found.append(descriptor)
        except OSError:  # the listing's own
            pass
    return found
