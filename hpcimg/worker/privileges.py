"""Dropping privileges for good, before a process touches anybody else's data."""

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
# The C library has no function for keyctl(2).
_KEYCTL = {"x86_64": 250, "aarch64": 219, "ppc64le": 271, "riscv64": 219, "s390x": 280}
_JOIN_SESSION_KEYRING = 1
MOST_FILES = 1024
_NO_KEYRINGS = (errno.ENOSYS, errno.EPERM)  # in the kernel; in a container, for all its processes
_FIRST_TO_GO = "1000"  # on the kernel's scale from -1000 to 1000


def give_up(
    account: Account | None, *, file_bytes: int, memory_bytes: int, open_files: int = MOST_FILES
) -> None:
    """Become the account (None: stay the same), with limits; end when the parent does.

    `file_bytes` is the maximum file size, beyond which the kernel fails a write with EFBIG;
    `memory_bytes` is the maximum of writable memory per process, `open_files` of open files. When
    the node runs out of memory, this process is killed first. Other processes of the account cannot
    inspect it, and it has no access to the session keyring that it was started in. Raises OSError
    if any of this fails.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _leave_keyring(libc)
    os.umask(0o077)
    os.chdir("/")
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_bytes),
        # Not RLIMIT_AS: threads and Go programs reserve far more than they use.
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_NOFILE, open_files),
    ):
        _limit(what, most)
    # It is inherited, and slurmd is exempt. After the uid changes, the file belongs to root.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_FIRST_TO_GO)
    become(account)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # lasts until it executes another program
    # After setresuid: the kernel clears the signal when the uid changes. The caller then checks
    # that the parent is still there.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become(account: Account | None) -> None:
    """Become the account for good; None changes nothing."""
    if account is not None:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)


def _leave_keyring(libc: ctypes.CDLL) -> None:
    """Get an empty session keyring, before the uid changes, whose key quota may be used up."""
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
