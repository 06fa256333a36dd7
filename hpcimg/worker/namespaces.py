"""Namespaces for a worker: all that it starts ends with it, wherever it detaches itself to.

pid_namespaces(7): when the first process of a PID namespace ends, the kernel kills
the others, and only then does the one who waits for the first hear of it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19
_OURS = "/proc/thread-self/ns/pid_for_children"


@contextmanager
def around_next_process() -> Iterator[None]:
    """Let the one process that is started in the context be the first of a new PID namespace.

    Where this is not possible, as in most containers and without root, it is
    started as any other.
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        ours = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        made = libc.unshare(_CLONE_NEWPID) == 0
        try:
            yield
        finally:
            # Else this process could start no other once the first one has ended.
            if made and libc.setns(ours, _CLONE_NEWPID):
                raise OSError(ctypes.get_errno(), "the PID namespace cannot be left")
    finally:
        os.close(ours)


def mount_own_proc() -> None:
    """Let this process and its children see a /proc of their PID namespace, where there is one.

    Some programs look themselves up there by their number. /proc/self is right in
    any case, so that nothing depends on it.
    """
    if os.geteuid() != 0 or os.getpid() != 1:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    # What the node mounts later appears here too, and nothing the other way.
    if libc.unshare(_CLONE_NEWNS) == 0 and not libc.mount(
        b"none", b"/", None, _MS_REC | _MS_SLAVE, None
    ):
        libc.mount(b"proc", b"/proc", b"proc", flags, None)
