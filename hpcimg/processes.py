"""Telling a running process from one that is gone, across pid reuse and reboots."""

from __future__ import annotations

import functools
import os


def tag() -> str:
    """Return a text that names this process: boot, pid and start time.

    It holds no dot, so that `TAG.rest` can be taken apart by `alive`.
    """
    return f"{boot_id()}-{os.getpid()}-{_start_time(os.getpid())}"


def temp_path(directory: str, name: str) -> str:
    """Return a path for this process' unfinished work, which `alive` tells from leftovers."""
    return f"{directory}/{tag()}.{name}"


def alive(name: str) -> bool:
    """Tell whether the process whose tag begins the file name `name` still runs.

    A name without a tag belongs to nobody.
    """
    parts = name.partition(".")[0].split("-")
    if len(parts) != 3 or not parts[1].isdecimal():
        return False
    boot, pid, started = parts
    return boot == boot_id() and _start_time(int(pid)) == started


def is_older(pid: int, than: int) -> bool:
    """Tell whether a running process began before another one, or in the same clock tick."""
    began, other = _start_time(pid), _start_time(than)
    return bool(began and other) and int(began) <= int(other)


@functools.cache
def boot_id() -> str:
    """Return a short text that is another after each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read(8)


def _start_time(pid: int) -> str:
    """Return the process's start in clock ticks since boot, "" where there is none or it ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The command may hold blanks and brackets; the fields follow the last one.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
