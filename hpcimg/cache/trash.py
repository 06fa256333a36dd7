"""Removal of what may be large, deep or numerous, without anybody waiting for it.

What is to go is renamed into `trash/`, which takes no time whatever it is, and from
there removed: at once as far as a moment goes, the rest by a process in the
background or by `hpcimg gc`. No path is walked: a directory within another one is
moved up beside it and so becomes one more to empty, however deep it was. No link is
followed, and what is mounted stays, since it cannot be renamed.
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

from hpcimg.cache.paths import Layout

log = logging.getLogger(__name__)
_AT_ONCE_S = 1.0
_BEHIND_S = 600.0
# Freeing the blocks of a file is one system call, of a second for some tens of GiB.
_AT_ONCE_BYTES = 4 << 30
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_START = "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.cache.trash import main; main()"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def put(layout: Layout, path: str) -> bool:
    """Move a file or directory out of the way; return whether it was there. Raises OSError."""
    try:
        os.rename(path, f"{layout.trash}/{os.urandom(16).hex()}")
    except FileNotFoundError:
        return False
    return True


def empty(layout: Layout) -> None:
    """Remove what is in the trash: for a second here, the rest in the background.

    Never raises: what cannot be removed is logged, and left to the next one who comes.
    """
    try:
        until = time.monotonic() + _AT_ONCE_S
        if not _empty(layout.trash, until=until, most_bytes=_AT_ONCE_BYTES):
            _empty_behind(layout)
    except OSError as error:
        log.warning("%s is not emptied: %s", layout.trash, error)


def empty_all(layout: Layout, *, time_s: float) -> bool:
    """Remove what is in the trash here; return whether that was possible in this time.

    Raises OSError.
    """
    return _empty(layout.trash, until=time.monotonic() + time_s)


def count(layout: Layout) -> int:
    """Return how many files and directories are waiting to be removed."""
    try:
        return len(os.listdir(layout.trash))
    except FileNotFoundError:
        return 0


def main() -> None:
    """Empty the trash that the command line names, within some minutes."""
    os.nice(19)
    with contextlib.suppress(OSError):
        _empty(sys.argv[2], until=time.monotonic() + _BEHIND_S)


def _empty_behind(layout: Layout) -> None:
    """Start a process that goes on.

    In a session of its own, since slurmd kills what is left of its hook's process group, and
    with no file of ours open, since slurmd waits until its pipe is closed.
    """
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", _START, _ROOT, layout.trash],
        {"LC_ALL": "C.UTF-8"},
        file_actions=null,
        setsid=True,
    )


def _empty(path: str, *, until: float, most_bytes: int | None = None) -> bool:
    """Remove until a time.monotonic() value; return whether nothing is left that can be removed.

    Files of more than `most_bytes` are left. One process at a time does it; where another
    one is at it, nothing is left to do here. Raises OSError.
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
        self._left: set[str] = set()  # what was too large, or could not be removed
        self._whole = True

    def run(self) -> bool:
        """Return whether nothing was left because of its size or for want of time."""
        try:
            while names := set(os.listdir(self._trash)) - self._left:
                for name in names:
                    self._remove(name)
        except _TimeIsOver:
            return False
        return self._whole

    def _remove(self, name: str) -> None:
        """Remove one file, or empty one directory; what is below it may be in the trash then."""
        try:
            if not self._unlink(self._trash, name) and not self._empty(name):
                self._left.add(name)
        except FileNotFoundError:
            pass  # where locks do nothing: another one was faster
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
        # One level less, whatever it is: so neither depth nor the length of a path counts.
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
    """Let ourselves into a directory of our own, whatever its mode is. Root needs no leave."""
    if os.geteuid() == 0:
        return
    directory = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{directory}", 0o700)
    finally:
        os.close(directory)
