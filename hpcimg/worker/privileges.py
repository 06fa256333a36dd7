"""Giving up rights for good: what a process does before it touches anybody else's data."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal

from hpcimg.worker.accounts import Account

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
# No function of the C library's: keyctl(2).
_KEYCTL = {"x86_64": 250, "aarch64": 219, "ppc64le": 271, "riscv64": 219, "s390x": 280}
_JOIN_SESSION_KEYRING = 1
MOST_FILES = 1024
_NO_KEYRINGS = (errno.ENOSYS, errno.EPERM)  # of the kernel's; of a container, for all in it
_FIRST_TO_GO = "1000"  # of the kernel's -1000 to 1000


def give_up(
    account: Account | None, *, file_bytes: int, memory_bytes: int, open_files: int = MOST_FILES
) -> None:
    """Become the account (None: stay who we are), within limits; end when the parent does.

    `file_bytes` is how large a file may get, which the kernel tells a write with
    EFBIG; `memory_bytes` how much writable memory each process may have, `open_files` how many
    open files. When the node runs out of memory, this process goes first. No other process of
    the account can look into it, and the keys of the session that it was started in are not its
    own. Raises OSError where one of this cannot be had.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _leave_keyring(libc)
    os.umask(0o077)
    os.chdir("/")
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_bytes),
        # Not RLIMIT_AS: threads and Go reserve far more than they use.
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_NOFILE, open_files),
    ):
        _limit(what, most)
    # It is inherited, and slurmd is exempt. Later the file belongs to root.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_FIRST_TO_GO)
    become(account)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # until it starts another program
    # After setresuid: the kernel forgets the signal when the uid changes. Who calls this
    # looks afterwards whether the parent is still there.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become(account: Account | None) -> None:
    """Become the account for good; None changes nothing."""
    if account is not None:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)


def _leave_keyring(libc: ctypes.CDLL) -> None:
    """Get an empty session keyring; before the uid changes, whose quota of keys may be used up."""
    number = _KEYCTL.get(os.uname().machine)
    if number is None or libc.syscall(number, _JOIN_SESSION_KEYRING, None) >= 0:
        return
    if (code := ctypes.get_errno()) not in _NO_KEYRINGS:
        raise OSError(code, f"the session keyring cannot be left: {os.strerror(code)}")


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))
