"""Cross-process locks with a deadline, by filelock.

The kernel releases a lock when its holder dies, however it dies. Only the holder of a lock unlinks
its file, and filelock checks that the file it locked still exists: otherwise a waiter with the
old file open and a process that creates a new one would both hold "the" lock. These locks only
avoid duplicate work; on a file system where they do nothing, images are still complete.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from hpcimg.errors import CacheUnusable, DeadlinePassed, MissingTool, from_os_error

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
    try:  # here, so that a node without it can say so
        from filelock import FileLock, Timeout
    except ModuleNotFoundError as error:
        raise MissingTool.of_package(error) from None
    # The soft fallback would leave a marker behind when its holder is killed.
    lock = FileLock(path, mode=0o600, fallback_to_soft=False)
    entered = time.monotonic()
    waited = False
    interval = min(_TELL_EVERY_S, tell_every_s)
    try:
        while True:
            left = deadline - time.monotonic()
            try:
                lock.acquire(timeout=max(0.0, min(left, interval if waited else 0.0)))
                break
            except Timeout:
                waited = True
                if left <= 0:
                    raise DeadlinePassed(
                        "gave up waiting",
                        why="another job on this node was still fetching the same image after "
                        f"{time.monotonic() - (began or entered):.0f} s",
                    ) from None
                waiting(time.monotonic() - entered)
    except NotImplementedError as error:
        raise CacheUnusable(f"{path} cannot be locked", why=str(error)) from error
    except OSError as error:
        raise from_os_error(error, path, cannot="be locked") from error
    try:
        yield waited
    finally:
        lock.release()


def load_leases() -> None:
    """Import what a Lease needs, by a process that may not read that any more later."""
    from filelock import SoftFileLease, Timeout  # noqa: F401


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
        from filelock import SoftFileLease  # noqa: F401

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
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            os.unlink(path)
    except OSError:
        pass  # held, or gone
    finally:
        os.close(descriptor)
