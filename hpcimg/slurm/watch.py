"""A hook's slow path, in a child process that is waited for no longer than Slurm allows.

A system call on a hanging disk, or on a file system that does not answer, cannot be interrupted:
the process ends when the call does, and cannot watch the clock until then. This process makes no
such calls, tells the job, and exits; so Slurm, which would drain the node, hears in time that
Prolog is done.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time

from hpcimg import processes, programs
from hpcimg.worker import starting

TYPE_CHECKING = False  # importing typing takes longer than starting a worker
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import NoReturn

    from hpcimg.cache.leader import Leader

_MOMENT_S = 1.0  # most hooks are done by then
_TO_END_S = 2.0  # after SIGKILL, for a process that can be killed
_SIGKILL = 9


def main(hook: str, *, came: float | None = None, leader: Leader | None = None) -> int:
    """Run "prolog" or "epilog"; return its exit code, or 0 if it took too long.

    `came`, a time.monotonic() value, is when the hook started, if that was earlier, and `leader` is
    what others wait for.
    """
    began = time.monotonic() if came is None else came

    def work() -> int:
        arguments = {}
        if came is not None and hook == "prolog":
            arguments = {"came": came, "leader": leader}
            if leader:  # the image is not cached, so it has to be fetched
                starting.hurry()
                starting.early(_scheme_of(leader.name))
        module = _load(hook)
        starting.settle()
        code: int = module.main(**arguments)
        return code

    def left_s() -> float:
        limit_s: float = _load(hook).limit_s()
        return limit_s - (time.monotonic() - began)

    code = within(left_s, work)
    if code is None:
        if leader:  # of a process that may never end
            leader.done()
        module = _load(hook)
        module.too_late(module.limit_s())
        return 0
    return code


def _load(hook: str) -> ModuleType:
    """Import the slow path of a hook, and first make its packages available."""
    if sys.flags.no_site:  # the fast path needs none
        import site

        site.main()
    gc.disable()  # as in `hpcimg.worker.starting`
    module = importlib.import_module(f"hpcimg.slurm.{hook}")
    gc.freeze()
    gc.enable()
    return module


def _scheme_of(name: str) -> str:
    """Return the scheme of a reference as written in the hot records."""
    text = name.rpartition(" ")[2]
    return "file" if text.startswith("/") else text.partition(":")[0]


def within(limit_s: Callable[[], float], work: Callable[[], int]) -> int | None:
    """Return what `work` returns in a process of its own, None if it takes longer.

    In that case the process is killed, if possible. For a killed process return 128 plus the
    signal, as a shell does. Its output appears when it has ended. The limit is requested only after
    a moment, because determining it takes a while, too.
    """
    # Not our standard error: its reader would wait for a process that cannot be killed.
    with programs.listen() as words:
        die_with_us = programs.die_with_parent()
        child = os.fork()
        if child == 0:
            die_with_us()
            _work(work, words.fileno())

        status = processes.wait(child, _MOMENT_S)
        if status is None:
            status = processes.wait(child, limit_s())
        if status is None:
            os.kill(child, _SIGKILL)
            processes.wait(child, _TO_END_S)
        words.seek(0)
        sys.stderr.write(words.read().decode(errors="replace"))
    if status is None:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _work(work: Callable[[], int], words: int) -> NoReturn:
    code = 1
    try:
        os.dup2(words, 1)
        os.dup2(words, 2)
        code = work()
    except BaseException:
        import traceback  # not needed by a hook that succeeds

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
