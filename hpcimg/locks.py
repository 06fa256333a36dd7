"""Cross-process locks with a deadline: flock(2), and filelock to wait for one.

The kernel releases a lock when its holder dies, however it dies. Only the holder of a lock unlinks
its file, and whoever locked one checks that it still exists: otherwise a waiter with the old file
open and a process that creates a new one would both hold "the" lock. These locks only avoid
duplicate work; on a file system where they do nothing, images are still complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from hpcimg.errors import CacheUnusable, DeadlinePassed, MissingTool, from_os_error

if TYPE_CHECKING:
    from filelock import FileLock

# Takes one of the cache's locks by its name, and yields whether there was a wait.
Lock = Callable[[str], AbstractContextManager[bool]]
_TELL_EVERY_S = 5.0


@contextmanager
def held(
    path: str,
    *,
    deadline: float,
    waiting: Callable[[float], None] = lambda _: None,
    tell_every_s: float = float("inf"),
    began: float | None = None,
) -> Iterator[bool]:
    """Hold the lock; yield whether there was a wait.

    `deadline` is a time.monotonic() value; when it passes, DeadlinePassed is raised. While waiting,
    `waiting` is called every `tell_every_s` seconds, at most every five, with the seconds waited so
    far, counted from `began` if given. An exception from it ends the wait.
    """
    try:
        free = _make_and_take(path)
    except OSError as error:
        raise from_os_error(error, path, cannot="be locked") from error
    if free is not None:
        try:
            yield False
        finally:
            # Explicitly: a process that was forked meanwhile may have the file open as well.
            fcntl.flock(free, fcntl.LOCK_UN)
            os.close(free)
        return
    began = began or time.monotonic()
    if deadline <= time.monotonic():
        raise _gave_up(began)
    lock = _waited_for(path, deadline, waiting, min(_TELL_EVERY_S, tell_every_s), began)
    try:
        yield True
    finally:
        lock.release()


def _waited_for(
    path: str, deadline: float, waiting: Callable[[float], None], interval_s: float, began: float
) -> FileLock:
    """Wait for a lock that is held; return it when it is ours."""
    try:  # only now: it takes longer to import than a small image takes to arrive
        from filelock import FileLock, Timeout
    except ModuleNotFoundError as error:
        raise MissingTool.of_package(error) from None
    # The soft fallback would leave a marker behind when its holder is killed.
    lock = FileLock(path, mode=0o600, fallback_to_soft=False)
    entered = time.monotonic()
    try:
        while (left := deadline - time.monotonic()) > 0:
            waiting(time.monotonic() - entered)
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=min(left, interval_s))
                return lock
    except NotImplementedError as error:
        raise CacheUnusable(f"{path} cannot be locked", why=str(error)) from error
    except OSError as error:
        raise from_os_error(error, path, cannot="be locked") from error
    raise _gave_up(began)


def _gave_up(began: float) -> DeadlinePassed:
    seconds = time.monotonic() - began
    return DeadlinePassed(
        "gave up waiting",
        why=f"another job on this node was still fetching the same image after {seconds:.0f} s",
    )


class Lease:
    """A lock between nodes: a file that its holder renews, since some mounts fake flock(2).

    A holder that does not renew it for `duration_s`, the same on all nodes, loses it to the next
    one that tries. Each node measures this by its own clock. Use one object for all attempts.
    """

    def __init__(self, path: str, duration_s: float) -> None:
        from filelock import SoftFileLease

        self._lease = SoftFileLease(path, lease_duration=duration_s, mode=0o600, timeout=0)

    @staticmethod
    def load() -> None:
        """Import what leases need, before changing to an account that may be unable to."""
        from filelock import SoftFileLease, Timeout  # noqa: F401

    def take(self) -> bool:
        """Try once; return whether we hold it. Raises OSError, RuntimeError."""
        from filelock import Timeout

        if not self.held:
            try:
                self._lease.acquire(blocking=False)
            except Timeout:
                return False
        return True

    @property
    def held(self) -> bool:
        """Whether we hold it, as far as we know."""
        return self._lease.is_locked and self._lease.compromise is None

    def release(self) -> None:
        """Release it if it is held."""
        self._lease.release(force=True)


def remove_free(path: str) -> None:
    """Unlink a lock file that nobody holds; leave any other."""
    with contextlib.suppress(OSError):  # gone
        free = _take_if_free(path)
        if free is not None:
            try:
                os.unlink(path)
            finally:
                os.close(free)


def _make_and_take(path: str) -> int | None:
    """Make a lock file if there is none, and take the lock if it is free. Raises OSError."""
    try:
        return _take_if_free(path, os.O_CREAT)
    except FileNotFoundError:  # the cache itself is still to be made
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return _take_if_free(path, os.O_CREAT)


def _take_if_free(path: str, flags: int = 0) -> int | None:
    """Return the file of a lock, open and locked; None if it is held, or was removed just now.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
