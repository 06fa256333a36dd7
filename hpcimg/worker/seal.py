"""Sealing a file: after that, its content cannot change.

An unprivileged process may have passed its open file to another one, or another one of the same
account may have taken it from /proc/PID/fd. Only the kernel knows: it grants a read lease
(fcntl(2), F_SETLEASE) on a file only if nobody has it open for writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time

from hpcimg.errors import Interrupted

# The kernel closes the files of a killed process, and those in its sockets, a moment later.
_LATE_S = 1.0
_LOOK_EVERY_S = 0.01


def seal(descriptor: int, *, uri: str) -> None:
    """Make the open file read-only, here and for everybody, and owned by us alone.

    The descriptor keeps its number. First close all others through which we could write. Raises
    Interrupted if somebody else can still write to it.
    """
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.fchown(descriptor, os.geteuid(), -1)
    os.fchmod(descriptor, 0o600)  # its owner may have made it accessible to all
    readable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.dup2(readable, descriptor, inheritable=False)
    finally:
        os.close(readable)
    late = time.monotonic() + _LATE_S
    while is_written(descriptor):
        if time.monotonic() > late:
            raise Interrupted(
                f"{uri} was not kept",
                why="a process that is not hpcimg's has its file open and could still change it",
            )
        time.sleep(_LOOK_EVERY_S)


def is_written(descriptor: int) -> bool:
    """Tell whether anybody has this file, which we have open for reading, open for writing.

    Also False on a file system without leases: see `has_leases`.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def has_leases(descriptor: int) -> bool:
    """Tell whether the file system of a file that only we have open, for reading, has leases."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True
