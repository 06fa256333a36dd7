"""A hook's slow path, in a child process that is waited for no longer than Slurm allows.

A system call on a hanging disk, or on a file system that does not answer, cannot be interrupted:
the process ends when the call does, and cannot watch the clock until then. This process makes no
such calls, tells the job, and exits; so Slurm, which would drain the node, hears in time that
Prolog is done.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from hpcimg import programs

log = logging.getLogger(__name__)
_TO_END_S = 2.0  # after SIGKILL, for a process that can be killed


def main(hook: str) -> int:
    """Run "prolog" or "epilog"; return its exit code, or 0 if it took too long."""
    module = importlib.import_module(f"hpcimg.slurm.{hook}")
    limit_s: float = module.limit_s()
    code = within(limit_s, module.main)
    if code is None:
        module.too_late(limit_s)
        return 0
    return code


def within(limit_s: float, work: Callable[[], int]) -> int | None:
    """Return what `work` returns in a process of its own, None if it takes longer.

    In that case the process is killed, if possible. For a killed process return 128 plus the
    signal, as a shell does. Its output appears when it has ended.
    """
    # Not our standard error: its reader would wait for a process that cannot be killed.
    with programs.listen() as words, _told_of_children() as before:
        die_with_us = programs.die_with_parent()
        child = os.fork()
        if child == 0:
            die_with_us()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _work(work, words.fileno())
        status = _wait(child, limit_s)
        if status is None:
            os.kill(child, signal.SIGKILL)
            _wait(child, _TO_END_S)
        words.seek(0)
        sys.stderr.write(words.read().decode(errors="replace"))
    if status is None:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


@contextmanager
def _told_of_children() -> Iterator[set[int]]:
    """Unblock `_wait` when a child ends; yield the signals that were blocked before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(work: Callable[[], int], words: int) -> NoReturn:
    code = 1
    try:
        os.dup2(words, 1)
        os.dup2(words, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, limit_s: float) -> int | None:
    """Return the child's exit status, None if it does not end in time."""
    until = time.monotonic() + limit_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        left = until - time.monotonic()
        if left <= 0:
            return None
        signal.sigtimedwait({signal.SIGCHLD}, left)
