"""Giving up rights for good: what a process does before it touches anybody else's data."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from hpcimg.accounts import Account

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def give_up(account: Account | None, *, parent: int) -> None:
    """Become the account (None: stay who we are), and end when the process `parent` does."""
    os.umask(0o077)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if account is not None:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # After setresuid: the kernel forgets the signal when the uid changes.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before prctl was called
