"""The status of a mounted file: whether it is still the one that was copied, and readable.

Imports only posix and stat, and select when a status is taken: a cache hit uses it.
"""

import posix
import stat

_PATIENCE_S = 2.0  # slower file systems are left to the slow path, which has a deadline
_SIGKILL = 9
_LOOK_MAX = 256


def of(seen: posix.stat_result) -> str:
    """Return a text that changes when the file is written, replaced, or its permissions change.

    The change time reveals writes that preserve size and date, as by rsync. The device is left out:
    an automounter assigns a new one each time.
    """
    return f"{seen.st_ino}-{seen.st_size}-{seen.st_mtime_ns}-{seen.st_ctime_ns}"


def take(path: str, rights: str) -> str:
    """Return `of` the file at a path that a user named.

    "" if it cannot be read with these rights, as returned by `rights_of`, or does not answer within
    seconds. Nothing can interrupt a call on a hung file system, so a child process makes it, and is
    abandoned if it does not return.
    """
    import select

    ours, theirs = posix.pipe()
    child = posix.fork()
    if child == 0:
        try:
            _answer(theirs, path, rights)
        finally:
            posix._exit(0)
    try:
        posix.close(theirs)
        if select.select([ours], [], [], _PATIENCE_S)[0]:
            return posix.read(ours, _LOOK_MAX).decode()
        posix.kill(child, _SIGKILL)
        return ""
    finally:
        # Do not wait for the child, which its user may have stopped: init reaps it.
        posix.close(ours)


def rights_of(uid: int, gid: int, groups: tuple[int, ...]) -> str:
    """Return an account's rights as one word; "" stands for those of this process."""
    return f"{uid}:{gid}:{','.join(map(str, groups))}"


def _answer(pipe: int, path: str, rights: str) -> None:
    # slurmd reads the hook's output until no process has it open.
    silence = posix.open("/dev/null", posix.O_RDWR)
    for descriptor in (0, 1, 2):
        posix.dup2(silence, descriptor)
    if rights:
        # The kernel lets no process of the user inspect one that changed its uid.
        uid, gid, groups = rights.split(":")
        posix.setgroups([int(group) for group in groups.split(",") if group])
        posix.setresgid(int(gid), int(gid), int(gid))
        posix.setresuid(int(uid), int(uid), int(uid))
    seen = posix.stat(path)
    # Not opened: that could block on somebody's lease on the file, and rewinds a tape.
    if stat.S_ISREG(seen.st_mode) and posix.access(path, posix.R_OK):
        posix.write(pipe, of(seen).encode())
