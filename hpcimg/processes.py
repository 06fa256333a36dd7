"""Telling whether a process is still running, across pid reuse and reboots.

Imports only posix: a waiting job uses it.
"""

import posix

_boot_id = ""


def tag() -> str:
    """Return a text that identifies this process: boot, pid and start time.

    It contains no dot, so that `alive` can take `TAG.rest` apart.
    """
    return f"{boot_id()}-{posix.getpid()}-{_start_time(posix.getpid())}"


def temp_path(directory: str, name: str) -> str:
    """Return a path for unfinished work of this process, which `alive` can tell from leftovers."""
    return f"{directory}/{tag()}.{name}"


def alive(name: str) -> bool:
    """Tell whether the process whose tag begins the file name `name` is still running.

    A name without a tag belongs to no process.
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


def boot_id() -> str:
    """Return a short text that differs after each boot."""
    global _boot_id
    if not _boot_id:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            _boot_id = file.read(8)
    return _boot_id


def _start_time(pid: int) -> str:
    """Return the process's start in clock ticks since boot, "" if it is not running."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The command may contain blanks and brackets; the fields follow the last bracket.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
