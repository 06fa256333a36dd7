"""The end of writing: after it, what is in a file stays what it is.

A process without rights may have handed its open file to another one, or another one of
the same account may have taken it by /proc/PID/fd. Only the kernel knows: it grants a read
lease (fcntl(2), F_SETLEASE) on a file that nobody has open to be written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time

from hpcimg.errors import Interrupted

# The kernel closes the files of a process that it killed, and those in its sockets, a moment later.
_LATE_S = 1.0
_LOOK_EVERY_S = 0.01


def seal(descriptor: int, *, uri: str) -> None:
    """Make the open file one that is read only, here and for everybody; it is ours alone then.

    The descriptor keeps its number. Close all others by which we could write
    before. Raises Interrupted where somebody else still can write to it.
    """
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.fchown(descriptor, os.geteuid(), -1)
    os.fchmod(descriptor, 0o600)  # its owner may have opened it to all
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
    """Tell whether anybody has this file, which we have open to read, open to be written.

    False as well on a file system that knows no leases: see `has_leases`.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def has_leases(descriptor: int) -> bool:
    """Tell whether the file system of a file that is open to read, by us alone, knows leases."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True
