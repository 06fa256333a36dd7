"""A Prolog that waits for an image that another Prolog is fetching.

It uses little memory and sleeps in the kernel, since a large node may have hundreds of them.
"""

import posix
import time

from hpcimg import processes
from hpcimg.cache import hot, leader
from hpcimg.cache.paths import Layout
from hpcimg.config import files as conffiles
from hpcimg.slurm import jobfiles

_SYSLOG = "/dev/log"


class Asks:
    """A job, the configuration files and the layout; `came` is when it begins to wait."""

    __slots__ = ("came", "files", "job", "layout")

    def __init__(self, files: list[tuple[str, str]], layout: Layout, job: jobfiles.Job) -> None:
        self.came = time.monotonic()
        self.files = files
        self.layout = layout
        self.job = job


def wait(
    asks: Asks, image: jobfiles.Image, text: str, fingerprint: str, leaders: list[leader.Leader]
) -> hot.Hit | None:
    """Wait for one of the job's images while another job fetches it, or become the leader.

    `text` is its name in the hot records. The file that is waited for, or led, is appended to
    `leaders`. Returns None if the caller must take the ordinary path.
    """
    job = asks.job
    place = leader.join(asks.layout.leaders, job.uid, fingerprint, text)
    if place is None:
        return None
    leaders.append(place)

    def say(told: leader.Told) -> None:
        image.uri = told.uri
        jobfiles.write_asked(asks.layout, job, process=processes.tag())
        waits = f"job {job.id} waits for {told.uri}, which another job is fetching"
        _log(asks.files, job.id, f"{waits} (job {told.job})")

    if not place.leads and not place.wait(asks.came, say):
        return None
    # Another process may have finished it just now.
    hit = hot.lookup(asks.layout, text, job=job.id, uid=job.uid, fingerprint=fingerprint)
    if hit:
        place.done()
        image.source = "waited"
    return hit


def _log(files: list[tuple[str, str]], job: str, text: str) -> None:
    """Write a log line in the format of `hpcimg.logs`, without importing logging."""
    to = conffiles.raw_value(files, "log", "to") or "syslog"
    if to == "syslog" and _exists(_SYSLOG):
        import syslog

        syslog.openlog("hpcimg", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_INFO, f"prolog job {job}: INFO: {text}")
        return
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    line = f"{now} hpcimg prolog job {job}: INFO: {text}\n".encode("utf-8", "replace")
    file = 2
    if to not in ("syslog", "stderr"):
        try:
            path = to.replace("%n", conffiles.node_name()) if "%n" in to else to
            file = posix.open(
                path, posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC, 0o666
            )
        except OSError:
            pass
    posix.write(file, line)
    if file != 2:
        posix.close(file)


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
