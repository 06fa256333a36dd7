"""Namespaces for a worker: everything that it starts ends with it, even if detached.

pid_namespaces(7): when the first process of a PID namespace ends, the kernel kills the others
before it reports the end of the first to the waiting parent.
"""

from __future__ import annotations

import ctypes
import os

_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19
_OURS = "/proc/thread-self/ns/pid_for_children"


class AroundNextProcess:
    """Make the next process started in the context the first of a new PID namespace.

    If that is not possible, as in most containers and without root, it is started normally.
    """

    def __enter__(self) -> None:
        self._ours: int | None = None
        if os.geteuid() != 0:
            return
        try:
            ours = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        self._libc = ctypes.CDLL(None, use_errno=True)
        if self._libc.unshare(_CLONE_NEWPID):
            os.close(ours)
        else:
            self._ours = ours

    def __exit__(self, *_: object) -> None:
        if self._ours is None:
            return
        try:
            # Otherwise this process could not start another one after the first has ended.
            if self._libc.setns(self._ours, _CLONE_NEWPID):
                raise OSError(ctypes.get_errno(), "the PID namespace cannot be left")
        finally:
            os.close(self._ours)


def mount_own_proc() -> None:
    """Mount a /proc for the PID namespace of this process, if it has one.

    Some programs look up their own pid there. /proc/self works in any case, so nothing depends on
    it.
    """
    if os.geteuid() != 0 or os.getpid() != 1:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    # Later mounts of the node appear here too, but not the other way round.
    if libc.unshare(_CLONE_NEWNS) == 0 and not libc.mount(
        b"none", b"/", None, _MS_REC | _MS_SLAVE, None
    ):
        libc.mount(b"proc", b"/proc", b"proc", flags, None)
