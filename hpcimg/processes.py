"""Telling whether a process is still running, across pid reuse and reboots; waiting for a child.

Imports only posix: a waiting job uses it.
"""

import posix

_SLEEP_S = 60.0  # at once: select(2) does not wait for ever
_LOOK_EVERY_S = 0.01  # for the end of a process, on kernels older than 5.3
_PIDFD_OPEN = 434  # the system call's number, on all processors
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


def wait(child: int, timeout_s: float) -> int | None:
    """Return the status of a child that has ended, as waitpid(2) does; None if it has not in time.

    Sleeps in the kernel, without signals.
    """
    import time

    until = time.monotonic() + timeout_s
    while True:
        ended, status = posix.waitpid(child, posix.WNOHANG)
        if ended:
            return status
        left = until - time.monotonic()
        if left <= 0:
            return None
        _sleep(child, min(left, _SLEEP_S))


def _sleep(child: int, limit_s: float) -> None:
    """Sleep until it has ended, or for a moment."""
    import select
    import time

    try:
        ends = open_pidfd(child)
    except OSError:
        time.sleep(min(limit_s, _LOOK_EVERY_S))
        return
    try:
        select.select([ends], [], [], limit_s)
    finally:
        posix.close(ends)


def open_pidfd(pid: int) -> int:
    """Return a descriptor of a process, readable when that has ended. Raises OSError."""
    if hasattr(posix, "pidfd_open"):
        return posix.pidfd_open(pid)
    from hpcimg import libc  # a Python that was built on an old system, such as conda's

    return libc.call("syscall", _PIDFD_OPEN, pid, 0)


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
