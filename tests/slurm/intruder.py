"""What a job of a hostile user's does on its node, as a program: each success is a violation.

/usr/bin/python3 intruder.py tamper CACHE STATE      at all files of the cache and of the jobs
/usr/bin/python3 intruder.py seize CACHE SECONDS     at the processes that work for this user
/usr/bin/python3 intruder.py lease FILE              has a lease on it until it is killed
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Below a cache and a state directory: what is for root, or for the one user whose it is.
_NOT_FOR_ALL = ("users/", "blobs/", "tmp/", "work/", "trash/", "jobs/", "hot/")


def tamper(cache: str, state: str) -> None:
    """Try to change everything there, and to read what belongs to another user."""
    image, job = os.environ["HPCIMG_IMAGE"], os.environ["SLURM_JOB_ID"]
    own = {image, f"{state}/jobs/{job}/record.json", f"{state}/jobs/{job}/task"}
    before = Path(image).read_bytes()
    for path in own:
        with open(path, "rb"):
            pass
    for top in (cache, state):
        for path in {*own, *_all_below(top)}:
            _try_all(path, is_directory=os.path.isdir(path))
            if path not in own and path.removeprefix(f"{top}/").startswith(_NOT_FOR_ALL):
                _unreadable(path)
    if Path(image).read_bytes() != before:
        print(f"violation: {image} was changed")


def seize(cache: str, seconds: str) -> None:
    """Stop the first process that works with this user's rights, and look for what it has."""
    until = time.monotonic() + float(seconds)
    met: set[str] = set()
    while not met and time.monotonic() < until:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"hpcimg.worker" not in (process / "cmdline").read_bytes():
                    continue
                if process.stat().st_uid != os.getuid() and not _has_uid(process):
                    continue
                if not _on_this_node(process):
                    continue
                met.add(process.name)
                os.kill(int(process.name), signal.SIGSTOP)
                _steal(process, cache)
    print(f"met {len(met)} processes")


def lease(path: str) -> None:
    """Hold a lease on a file: a process that opens it without O_NONBLOCK waits for this one."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    file = os.open(path, os.O_RDWR)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    print("held", flush=True)
    while True:
        signal.pause()


def _has_uid(process: Path) -> bool:
    return str(os.getuid()) in _status(process, "Uid")


def _on_this_node(process: Path) -> bool:
    """Tell whether it was started by this node's slurmd: several nodes share this host."""
    while process.name != "0":
        argv = (process / "cmdline").read_text().split("\0")
        if "slurmd" in argv[0] and "-N" in argv:
            return argv[argv.index("-N") + 1] == os.environ["SLURMD_NODENAME"]
        process = process.with_name(_status(process, "PPid")[0])
    return False


def _status(process: Path, field: str) -> list[str]:
    lines = (process / "status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(f"{field}:"))


def _steal(process: Path, cache: str) -> None:
    for name in ("environ", "mem"):
        _unreadable(f"{process}/{name}")
    for link in (process / "fd").iterdir():
        if (leads_to := str(link.readlink())).startswith(cache):
            print(f"violation: {leads_to} is in reach by {link}")


def _all_below(directory: str) -> Iterator[str]:
    yield directory
    for parent, directories, files in os.walk(directory):
        yield from (f"{parent}/{name}" for name in (*directories, *files))


def _unreadable(path: str) -> None:
    if not os.path.isdir(path):
        _forbidden(f"read {path}", lambda: open(path, "rb").close())


def _try_all(path: str, *, is_directory: bool) -> None:
    elsewhere = f"{os.environ['TMPDIR']}/stolen-{os.getpid()}"
    if is_directory:
        _forbidden(f"add to {path}", lambda: os.mkdir(f"{path}/mine"))
        _forbidden(f"chmod {path}", lambda: os.chmod(path, 0o777))
        return
    tries: dict[str, Callable[[], object]] = {
        "write to": lambda: os.close(os.open(path, os.O_WRONLY)),
        "append to": lambda: os.close(os.open(path, os.O_WRONLY | os.O_APPEND)),
        "truncate": lambda: os.truncate(path, 0),
        "chmod": lambda: os.chmod(path, 0o666),
        "chown": lambda: os.chown(path, os.getuid(), -1),
        "touch": lambda: os.utime(path, (0, 0)),
        "rename": lambda: os.rename(path, f"{path}.mine"),
        "remove": lambda: os.unlink(path),
        "link": lambda: os.link(path, elsewhere),
        "give all the right to": lambda: os.setxattr(path, "system.posix_acl_access", b"\2\0\0\0"),
        "mark": lambda: os.setxattr(path, "user.mine", b"x"),
    }
    for what, attempt in tries.items():
        _forbidden(f"{what} {path}", attempt)


def _forbidden(what: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except OSError:
        return
    print(f"violation: uid {os.getuid()} could {what}")


if __name__ == "__main__":
    {"tamper": tamper, "seize": seize, "lease": lease}[sys.argv[1]](*sys.argv[2:])
