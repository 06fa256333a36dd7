"""Giving up rights for good: what a process does before it touches anybody else's data."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal

from hpcimg.worker.accounts import Account

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_MOST_FILES = 1024
_FIRST_TO_GO = "1000"  # of the kernel's -1000 to 1000


def give_up(account: Account | None, *, file_bytes: int, memory_bytes: int) -> None:
    """Become the account (None: stay who we are), within limits; end when the parent does.

    `file_bytes` is how large a file may get, which the kernel tells a write with
    EFBIG; `memory_bytes` how much writable memory each process may have. When
    the node runs out of memory, this process goes first.
    """
    os.umask(0o077)
    os.chdir("/")
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_bytes),
        # Not RLIMIT_AS: threads and Go reserve far more than they use.
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_NOFILE, _MOST_FILES),
    ):
        _limit(what, most)
    # It is inherited, and slurmd is exempt. Later the file belongs to root.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_FIRST_TO_GO)
    if account is not None:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # After setresuid: the kernel forgets the signal when the uid changes. Who calls this
    # looks afterwards whether the parent is still there.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(what, (most, most))
