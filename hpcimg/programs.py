"""External programs: finding and starting them."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing takes longer than starting a worker
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO, Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SETSID = "/usr/bin/setsid"
RUNTIMES = ("apptainer", "singularity")  # those that run SIF files and verify them
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_MFD_CLOEXEC = 1
_MOST_SAID = 600


def find(*names: str) -> str:
    """Return the path of the first of these programs that is installed, "" if none is."""
    for name in names:
        for directory in PATH.split(":"):
            path = f"{directory}/{name}"
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    return ""


def environment(**more: str) -> dict[str, str]:
    """Return the complete environment for a program."""
    return {"PATH": PATH, "LC_ALL": "C", **more}


def spawn(
    argv: list[str], environment: Mapping[str, str], file_actions: Sequence[tuple[Any, ...]]
) -> int:
    """Start a program in a session of its own; return its pid. The rest is as in os.posix_spawn."""
    try:
        return os.posix_spawn(argv[0], argv, environment, file_actions=file_actions, setsid=True)
    except NotImplementedError:  # a Python that was built on an old system, such as conda's
        argv = [_SETSID, *argv]
        return os.posix_spawn(argv[0], argv, environment, file_actions=file_actions)


def die_with_parent() -> Callable[[], None]:
    """Return a `preexec_fn` that kills the program when the thread that started it ends.

    Start it from a thread that lives as long as the program should.
    """
    import ctypes

    # Looked up before the fork, after which little is safe to do.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before prctl was called

    return call


def close_all_but(*keep: int) -> None:
    """Close what a fork has left open, but the standard three and these."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:  # the listing's own
                pass


def listen() -> IO[Any]:
    """Return an in-memory file for a program's standard error."""
    return open(memory_file("words"), "w+b")


def memory_file(name: str) -> int:
    """Return a new file in memory that is not inherited. Raises OSError."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    from hpcimg import libc  # a Python that was built on an old system, such as conda's

    return libc.call("memfd_create", name.encode(), _MFD_CLOEXEC)


def last_words(words: IO[Any]) -> str:
    """Return the end of a program's output, on one line."""
    size = words.seek(0, os.SEEK_END)
    words.seek(max(0, size - _MOST_SAID))
    return " ".join(words.read().decode(errors="replace").split())
