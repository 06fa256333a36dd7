"""Who brings an image, and who waits for it in the smallest process that can.

The first job of a user that asks for something which is not there leads: it holds an
flock(2) on a file in `leaders/` until the image is there or could not be had, and
the kernel frees it when it dies. The user's other jobs that name the same sleep in
that call. Another user's jobs do not: what is fetched may turn out to be private.

Nothing rests on this: who is not served by it goes the long way, where the cache's locks see
to it that work is done once.

Imports only fcntl, os, time and _thread: a job that waits has little else loaded.
"""

import _thread
import fcntl
import os
import time

TYPE_CHECKING = False  # that of typing takes longer than all that is imported here
if TYPE_CHECKING:
    from collections.abc import Callable

_NAME_MAX = 250  # file systems allow 255
_TELLS_S = 30.0  # so long after its start at the latest, who leads has said what it does
_LOOK_S = 0.5
# Who leads may itself wait for another one, and looks at that four times within its patience;
# what it hears of its own progress may be a second old.
_PATIENCE, _LATE_S = 1.25, 1.0


class Told:
    """What one that leads says of itself: its job and URI, and what a waiter has to know.

    `patience_s` and `deadline_s` are as in the configuration that both have.
    """

    __slots__ = ("deadline_s", "job", "patience_s", "uri")

    def __init__(self, job: str, uri: str, *, patience_s: float, deadline_s: float) -> None:
        self.job = job
        self.uri = uri
        self.patience_s = patience_s
        self.deadline_s = deadline_s


class Leader:
    """One open file in `leaders/`: this process `leads`, or another one does."""

    __slots__ = ("_file", "_path", "abandoned", "leads", "name")

    def __init__(self, path: str, name: str) -> None:
        """Lead, or find out that another process does. Raises OSError."""
        self.name = name
        self.abandoned = False  # a thread of ours still sleeps in flock(2)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self.leads = False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            os.close(self._file)
            raise
        self._begin()

    def _begin(self) -> None:
        self.leads = True
        os.ftruncate(self._file, 0)  # what one that was killed had said
        self.goes_on()

    def tell(self, told: Told) -> None:
        """Say to those who wait what this process does."""
        text = f"{told.job}\n{told.patience_s!r}\n{told.deadline_s!r}\n{told.uri}\n"
        os.pwrite(self._file, text.encode("utf-8", "replace"), 0)
        self.goes_on()

    def goes_on(self) -> None:
        """Say that it is worth waiting for: kept as the file's time, by time.monotonic()."""
        now = time.monotonic()
        if self.leads:
            os.utime(self._file, (now, now))

    def done(self) -> None:
        """Wake those who wait; once is enough. The image is there, or it could not be had."""
        if self.leads:
            self.leads = False
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
            # Another process of this hook may have the file open, too.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)

    def wait(self, came: float, say: "Callable[[Told], None]") -> bool:
        """Sleep until who leads is done or dead; return False where it is not worth it.

        `came` is when the job did, a time.monotonic() value, and `say` hears once what is
        waited for. Who leads has to go on within the patience, and to be done by the
        deadline. Afterwards this process leads where the other one died, and the
        file is closed where it did not, or where this gives up.
        """
        woken = _thread.allocate_lock()
        woken.acquire()
        held: list[bool] = []

        def sleep() -> None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX)
                held.append(True)
            except OSError:
                pass
            woken.release()

        # A thread, since flock(2) knows no time; signals would take a module that costs as
        # much as half of this process.
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
                went_on = os.fstat(self._file).st_mtime
                until = min(went_on + _PATIENCE * told.patience_s + _LATE_S, came + told.deadline_s)
            left = min(until - now, _LOOK_S) if told is None else until - now
            if left <= 0:
                break
            if woken.acquire(timeout=left):
                self.abandoned = False
                break
        if held and os.fstat(self._file).st_nlink:
            self._begin()
            return True
        # Where the thread still sleeps, the kernel frees what it gets at once.
        os.close(self._file)
        return bool(held)

    def _told(self) -> Told | None:
        lines = os.pread(self._file, 1 << 13, 0).decode("utf-8", "replace").split("\n")
        if len(lines) != 5:
            return None
        job, patience_s, deadline_s, uri, _ = lines
        return Told(job, uri, patience_s=float(patience_s), deadline_s=float(deadline_s))


def join(directory: str, uid: int, fingerprint: str, name: str) -> Leader | None:
    """Lead for a name as the hot records have it, or join those who wait; None for neither.

    `fingerprint` is of the configuration: under another one, an image may be another.
    """
    file = f"{uid} {fingerprint} {name}".replace("%", "%25").replace("/", "%2F")
    if len(os.fsencode(file)) > _NAME_MAX:
        return None
    path = f"{directory}/{file}"
    try:
        try:
            return Leader(path, name)
        except FileNotFoundError:  # the first since the node booted
            os.makedirs(directory, mode=0o700, exist_ok=True)
            return Leader(path, name)
    except OSError:
        return None
