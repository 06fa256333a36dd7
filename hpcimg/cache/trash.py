"""Removing what may be large, deep or numerous, without making anybody wait for it.

It is renamed into `trash/`, which is instantaneous, and removed from there: for a moment right
away, the rest by a background process or by `hpcimg gc`. No path is walked: a directory within
another one is moved up next to it and becomes one more to empty, however deep it was. No link is
followed, and mounts stay, since they cannot be renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import sys
import time

from hpcimg import programs
from hpcimg.cache.paths import Layout

log = logging.getLogger(__name__)
_AT_ONCE_S = 1.0
_BEHIND_S = 600.0
# Freeing the blocks of a file is a single system call, a second for some tens of GiB.
_AT_ONCE_BYTES = 4 << 30
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_START = "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.cache.trash import main; main()"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def put(layout: Layout, path: str) -> bool:
    """Move a file or directory to the trash; return whether it existed. Raises OSError."""
    try:
        os.rename(path, f"{layout.trash}/{os.urandom(16).hex()}")
    except FileNotFoundError:
        return False
    return True


def empty(layout: Layout) -> None:
    """Empty the trash: for a second here, the rest in the background.

    Never raises: what cannot be removed is logged, and left for the next time.
    """
    try:
        until = time.monotonic() + _AT_ONCE_S
        if not _empty(layout.trash, until=until, most_bytes=_AT_ONCE_BYTES):
            _empty_behind(layout)
    except OSError as error:
        log.warning("%s is not emptied: %s", layout.trash, error)


def empty_all(layout: Layout, *, time_s: float) -> bool:
    """Empty the trash in this process; return whether that was possible in this time.

    Raises OSError.
    """
    return _empty(layout.trash, until=time.monotonic() + time_s)


def count(layout: Layout) -> int:
    """Return the number of files and directories waiting to be removed."""
    try:
        return len(os.listdir(layout.trash))
    except FileNotFoundError:
        return 0


def main() -> None:
    """Empty the trash named on the command line, within some minutes."""
    os.nice(19)
    with contextlib.suppress(OSError):
        _empty(sys.argv[2], until=time.monotonic() + _BEHIND_S)


def _empty_behind(layout: Layout) -> None:
    """Start a process that continues.

    In a session of its own, since slurmd kills the rest of its hook's process group, and with none
    of our files open, since slurmd waits until its pipe is closed.
    """
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    argv = [sys.executable, "-I", "-S", "-c", _START, _ROOT, layout.trash]
    programs.spawn(argv, {"LC_ALL": "C.UTF-8"}, null)


def _empty(path: str, *, until: float, most_bytes: int | None = None) -> bool:
    """Remove until a time.monotonic() value; return whether nothing removable is left.

    Files of more than `most_bytes` are left. Only one process at a time does it; if another one is
    doing it, this returns True. Raises OSError.
    """
    try:
        trash = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(trash, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _Emptying(trash, until, most_bytes).run()
    except BlockingIOError:
        return True
    finally:
        os.close(trash)


class _TimeIsOver(Exception):
    pass


class _Emptying:
    """One run through the trash, an open directory."""

    def __init__(self, trash: int, until: float, most_bytes: int | None) -> None:
        self._trash = trash
        self._until = until
        self._most_bytes = most_bytes
        self._left: set[str] = set()  # too large, or could not be removed
        self._whole = True

    def run(self) -> bool:
        """Return whether nothing was left because of its size or lack of time."""
        try:
            while names := set(os.listdir(self._trash)) - self._left:
                for name in names:
                    self._remove(name)
        except _TimeIsOver:
            return False
        return self._whole

    def _remove(self, name: str) -> None:
        """Remove one file, or empty one directory, moving its subdirectories to the trash."""
        try:
            if not self._unlink(self._trash, name) and not self._empty(name):
                self._left.add(name)
        except FileNotFoundError:
            pass  # where locks do nothing: another process was faster
        except NotADirectoryError:
            self._left.add(name)
        except OSError as error:
            log.warning("%s in the trash cannot be removed: %s", name, error)
            self._left.add(name)

    def _empty(self, name: str) -> bool:
        """Return whether anything could be taken out of a directory, or it is gone."""
        _allow(self._trash, name)
        directory = os.open(name, _DIRECTORY, dir_fd=self._trash)
        taken = False
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    taken |= self._take_out(directory, entry)
        finally:
            os.close(directory)
        try:
            os.rmdir(name, dir_fd=self._trash)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return taken  # a large directory may have to be read again
        return True

    def _take_out(self, directory: int, entry: os.DirEntry[str]) -> bool:
        if entry.is_dir(follow_symlinks=False):
            self._check_time()
            _allow(directory, entry.name)
        elif self._unlink(directory, entry.name):
            return True
        # One level up, whatever it is: so neither depth nor path length matters.
        os.rename(entry.name, os.urandom(16).hex(), src_dir_fd=directory, dst_dir_fd=self._trash)
        return True

    def _unlink(self, directory: int, name: str) -> bool:
        """Remove a file; return False for a directory, and for a file that is too large for now."""
        self._check_time()
        if self._most_bytes is not None:
            seen = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(seen.st_mode) and seen.st_blocks * 512 > self._most_bytes:
                self._whole = False
                return False
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            return False
        return True

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise _TimeIsOver


def _allow(parent: int, name: str) -> None:
    """Give ourselves access to our own directory, whatever its mode. Root needs none."""
    if os.geteuid() == 0:
        return
    directory = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{directory}", 0o700)
    finally:
        os.close(directory)
