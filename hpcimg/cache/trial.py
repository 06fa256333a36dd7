"""A trial of the cache and state directories: whether this node can write to them.

It changes nothing, except for a small file that is written and removed again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from hpcimg import processes
from hpcimg.cache import directories
from hpcimg.cache.paths import Layout
from hpcimg.errors import CacheUnusable, HpcimgError, NodeError, from_os_error

_WRITTEN = b"hpcimg" * 1000


def faulty(layout: Layout) -> bool:
    """Tell whether one of the directories has a fault that is the node's own.

    A full disk does not count: any user can cause that.
    """
    checks: list[Callable[[], object]] = [functools.partial(directories.check, layout)]
    checks += [functools.partial(write, *where) for _, *where in places(layout)]
    for check in checks:
        try:
            check()
        except NodeError:
            return True
        except HpcimgError:
            continue
    return False


def places(layout: Layout) -> tuple[tuple[str, str, str], ...]:
    """Return the name and the path of both, each with its subdirectory for unfinished files."""
    cache, state = (layout.cache, layout.tmp), (layout.state, layout.state_tmp)
    return ("cache", *cache), ("state", *state)


def write(root: str, tmp: str) -> str:
    """Write a file as Prolog does, read it back, and say so. Raises CacheUnusable, NoRoom.

    `root` is a directory that may be still to be made, `tmp` one below it.
    """
    if not os.path.isdir(root):
        return _to_be_made(root)
    path = processes.temp_path(tmp if os.path.isdir(tmp) else root, "health")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, _WRITTEN)
            os.fsync(descriptor)
            # Otherwise the data would come from memory, not from the disk.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if os.pread(descriptor, len(_WRITTEN) + 1, 0) != _WRITTEN:
                what = f"{root} does not return what was written to it"
                raise CacheUnusable(what, do="Check its disk.")
        finally:
            os.close(descriptor)
            os.unlink(path)
    except OSError as error:
        raise from_os_error(error, root, cannot="be written") from error
    return f"{root} can be written and read"


def _to_be_made(path: str) -> str:
    above = path
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK):
        return f"{path} will be created by the first job with an image"
    raise CacheUnusable(
        f"{path} cannot be created", why=f"{above} cannot be written", do="Make it writable."
    )
