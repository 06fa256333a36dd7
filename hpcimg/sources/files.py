"""Absolute paths and file:// : a parallel file system, or any other mounted one."""

from __future__ import annotations

import errno
import os
import stat

from hpcimg import look
from hpcimg.errors import Damaged, Forbidden, HpcimgError, NotAnImage, NotFound, Unreachable
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.reference import Reference

_CHUNK = 4 << 20  # parallel file systems like large reads


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Copy a file that this process's account can read; see `hpcimg.sources`."""
    path = reference.rest
    descriptor = open_file(path)
    try:
        seen = os.fstat(descriptor)
        if look.of(seen) == validator:
            return True
        sink.offer(Offer(look.of(seen), seen.st_size))
        while data := _read(descriptor, path):
            sink.write(data)
        sink.tell()
        check_unwritten(descriptor, seen, path)
    finally:
        os.close(descriptor)
    return False


def open_file(path: str) -> int:
    """Open a regular file for reading; return its descriptor.

    Raises NotFound, Forbidden, NotAnImage if it is not a file, Unreachable.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise explain(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAnImage(f"{path} is not a file", why="it is a directory, a device or a pipe")
    return descriptor


def check_unwritten(descriptor: int, before: os.stat_result, path: str) -> None:
    """Raise Damaged if the file was written since.

    Replacing it by another file is harmless: the open one is complete.
    """
    seen = os.fstat(descriptor)
    if (seen.st_size, seen.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Damaged(f"{path} changed while it was copied")


def _read(descriptor: int, path: str) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except OSError as error:
        raise explain(path, error) from error


def explain(path: str, error: OSError) -> HpcimgError:
    """Return the error for a path that a user named, in the user's terms."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return NotFound(
                f"there is no file {path} on this node",
                do="Check the spelling, and that its file system is mounted on the nodes.",
            )
        case errno.EACCES | errno.EPERM:
            return Forbidden(f"{path} may not be read", why="permission denied")
        case errno.ELOOP | errno.ENAMETOOLONG:
            return NotFound(f"{path} cannot be followed", why=error.strerror or "")
        case _:
            return Unreachable(f"{path} cannot be read now", why=error.strerror or "")
