"""Find and kill the processes that belong to a throwaway cluster, whoever their parent is."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path


def kill_processes(
    *, setting: str, mark: str = "", log: Path | None = None, spare: Collection[int] = ()
) -> int:
    """Kill every process that has this NAME=VALUE in its environment; return how many.

    Slurm's job steps leave the process group and the parent that slurmd gave them, but they, the
    hooks and the jobs all carry SLURM_CONF. With a log or a mark only those are meant that hold
    the log open (a job step's manager does) or have the mark in their environment as well (jobs
    and hooks do). Processes in spare, and this one, are left alone.
    """
    found = []
    for pid, environment in _processes():
        if pid in spare or pid == os.getpid() or setting not in environment:
            continue
        if (mark or log) and mark not in environment and not (log and _holds(pid, log)):
            continue
        found.append(pid)
    # Stop all of them before the first one ends, so that no job step's manager can report that.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    return len(found)


def descendants(pid: int) -> list[int]:
    """Return a process' children, those of all of its threads, their children and so on.

    Those that end while this looks may be among them or not.
    """
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                children += map(int, (task / "children").read_text().split())
    return [other for child in children for other in (child, *descendants(child))]


def users_of(directory: Path) -> list[int]:
    """Return the processes other than this one that have a file below a directory open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                opened = [fd.readlink() for fd in (process / "fd").iterdir()]
                if any(path.is_relative_to(directory) for path in opened):
                    found.append(int(process.name))
    return found


def status_of(pid: int) -> dict[str, list[str]]:
    """Return the fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def gone(pid: int) -> bool:
    """Tell whether a process has ended, waited for or not."""
    try:
        return status_of(pid)["State"][0] == "Z"
    except OSError:
        return True


def _processes() -> Iterator[tuple[int, list[str]]]:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_text(errors="replace")
        except OSError:
            # It ended in the meantime.
            continue
        yield int(directory.name), environment.split("\0")


def _holds(pid: int, path: Path) -> bool:
    try:
        return any(fd.readlink() == path for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
