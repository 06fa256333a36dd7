"""Elect the job that fetches an image, and let the user's other jobs wait with little memory.

The first of a user's jobs that needs an image which is not cached becomes the leader. It holds
an flock(2) on a file in `leaders/` until the image is cached or has failed; the kernel releases
the lock if it dies. The user's other jobs for the same reference sleep in flock(2). Other users'
jobs do not wait here, because the fetched image may turn out to be private.

This is only an optimization: a job that cannot use it takes the ordinary path, where the cache's
locks ensure that work is done once.

Imports only fcntl, posix, time and _thread, so that a waiting job stays small.
"""

import _thread
import fcntl
import posix
import time

TYPE_CHECKING = False  # importing typing takes longer than everything that is imported here
if TYPE_CHECKING:
    from collections.abc import Callable

_NAME_MAX = 250  # file systems allow 255
_TELLS_S = 30.0  # a leader writes what it does at most this long after its start
_LOOK_S = 0.5
# The leader may itself wait for another process, which it checks four times within its patience.
# The progress that it sees may be one second old.
_PATIENCE, _LATE_S = 1.25, 1.0


class Told:
    """What a leader writes about itself for the waiting jobs: job, URI and limits.

    `patience_s` and `deadline_s` come from the configuration, which both share.
    """

    __slots__ = ("deadline_s", "job", "patience_s", "uri")

    def __init__(self, job: str, uri: str, *, patience_s: float, deadline_s: float) -> None:
        self.job = job
        self.uri = uri
        self.patience_s = patience_s
        self.deadline_s = deadline_s


class Leader:
    """An open file in `leaders/`. `leads` tells whether this process leads or another one does."""

    __slots__ = ("_file", "_path", "abandoned", "leads", "name")

    def __init__(self, path: str, name: str) -> None:
        """Become the leader, or find out that another process is. Raises OSError."""
        self.name = name
        self.abandoned = False  # a thread of this process still sleeps in flock(2)
        self._path = path
        self._file = posix.open(
            path, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600
        )
        self.leads = False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            posix.close(self._file)
            raise
        self._begin()

    def _begin(self) -> None:
        self.leads = True
        posix.ftruncate(self._file, 0)  # left by a leader that was killed
        self.goes_on()

    def tell(self, told: Told) -> None:
        """Tell the waiting jobs what this process does."""
        text = f"{told.job}\n{told.patience_s!r}\n{told.deadline_s!r}\n{told.uri}\n"
        posix.pwrite(self._file, text.encode("utf-8", "replace"), 0)
        self.goes_on()

    def goes_on(self) -> None:
        """Report progress, as the file's mtime, by time.monotonic()."""
        now = time.monotonic()
        if self.leads:
            posix.utime(self._file, (now, now))

    def done(self) -> None:
        """Wake the waiting jobs: the image is cached or has failed. May be called again."""
        if self.leads:
            self.leads = False
            try:
                posix.unlink(self._path)
            except FileNotFoundError:
                pass
            # Another process of this hook may have the file open as well.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            posix.close(self._file)

    def wait(self, came: float, say: "Callable[[Told], None]") -> bool:
        """Sleep until the leader is done or dead. Returns False to give up.

        `came` is when this job started, by time.monotonic(). `say` is called once, with the
        leader's data. The leader must make progress within its patience and finish before the
        deadline. If the leader died, this process leads afterwards; otherwise the file is
        closed.
        """
        woken = _thread.allocate_lock()
        woken.acquire()
        held: list[bool] = []
        file = self._file

        def sleep() -> None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                held.append(True)
            except OSError:
                pass
            woken.release()

        # A thread, because flock(2) has no timeout. The signal module would cost half as much
        # memory again as this process.
        _thread.start_new_thread(sleep, ())
        self.abandoned = True
        told = None
        while True:
            now = time.monotonic()
            if told is None:
                told = self._told()
                if told is not None:
                    say(told)
            until = came + _TELLS_S
            if told is not None:
                went_on = posix.fstat(self._file).st_mtime
                until = min(went_on + _PATIENCE * told.patience_s + _LATE_S, came + told.deadline_s)
            left = min(until - now, _LOOK_S) if told is None else until - now
            if left <= 0:
                break
            if woken.acquire(timeout=left):
                self.abandoned = False
                break
        if held and posix.fstat(self._file).st_nlink:
            self._begin()
            return True
        # If the thread still sleeps, the kernel releases the lock as soon as the thread gets it.
        posix.close(self._file)
        return bool(held)

    def _told(self) -> Told | None:
        lines = posix.pread(self._file, 1 << 13, 0).decode("utf-8", "replace").split("\n")
        if len(lines) != 5:
            return None
        job, patience_s, deadline_s, uri, _ = lines
        return Told(job, uri, patience_s=float(patience_s), deadline_s=float(deadline_s))


def join(directory: str, uid: int, fingerprint: str, name: str) -> Leader | None:
    """Lead, or join the waiting jobs, for a name as in the hot records. None if neither works.

    `fingerprint` is the configuration's, since another configuration may select another image.
    """
    file = f"{uid} {fingerprint} {name}".replace("%", "%25").replace("/", "%2F")
    if len(file.encode("utf-8", "surrogateescape")) > _NAME_MAX:
        return None
    path = f"{directory}/{file}"
    try:
        try:
            return Leader(path, name)
        except FileNotFoundError:  # the first one since boot
            import os

            os.makedirs(directory, mode=0o700, exist_ok=True)
            return Leader(path, name)
    except OSError:
        return None
