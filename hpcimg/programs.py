"""The programs that do part of the work: where they are, and how they are started."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import IO, Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_PDEATHSIG = 1
_MOST_SAID = 600


def find(*names: str) -> str:
    """Return the path of the first of these programs that is on this node, "" for none."""
    for name in names:
        for directory in PATH.split(":"):
            path = f"{directory}/{name}"
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    return ""


def environment(**more: str) -> dict[str, str]:
    """Return all that a program gets of an environment."""
    return {"PATH": PATH, "LC_ALL": "C", **more}


def die_with_parent() -> Callable[[], None]:
    """Return a `preexec_fn` that ends the program when the thread that starts it ends.

    To be started from a thread that lives as long as the program shall.
    """
    import ctypes

    # Looked up before the fork: little may be done after it.
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it died before prctl was called

    return call


def close_all_but(*keep: int) -> None:
    """Close what a fork has left open, but the standard three and these."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(descriptor)


def listen() -> IO[Any]:
    """Return a file in memory, for what a program says on standard error."""
    return open(os.memfd_create("words"), "w+b")


def last_words(words: IO[Any]) -> str:
    """Return the end of what a program said, on one line."""
    size = words.seek(0, os.SEEK_END)
    words.seek(max(0, size - _MOST_SAID))
    return " ".join(words.read().decode(errors="replace").split())
