"""Telling a running process from one that is gone, across pid reuse and reboots.

Imports only os: a job that waits is known by it.
"""

import os

_boot_id = ""


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


def boot_id() -> str:
    """Return a short text that is another after each boot."""
    global _boot_id
    if not _boot_id:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            _boot_id = file.read(8)
    return _boot_id


def _start_time(pid: int) -> str:
    """Return the process's start in clock ticks since boot, "" where there is none or it ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The command may hold blanks and brackets; the fields follow the last one.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
