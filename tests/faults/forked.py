"""A part of the cache in a process of its own, with a fault at its n-th change of the file system.

A fork costs a few milliseconds, where steps.py starts a hook: so that each call and each fault can
be had together.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hpcimg import processes
from hpcimg.cache import inflight
from hpcimg.cache.paths import Layout
from hpcimg.errors import HpcimgError
from tests.faults.driver import CALLS, MORE_CALLS, Fault


class End(NamedTuple):
    """How it ended: the call that was struck ("" for none), the error it met, what it left behind.

    `killed` says that it met no end of its own.
    """

    struck: str
    error: HpcimgError | None
    unforeseen: str
    left: tuple[str, ...]
    killed: bool


def run(part: Callable[[], object], layout: Layout, *, fault: str = "kill", number: int = 0) -> End:
    """Run `part` in a fork of this process; `fault` is as in driver.py, 0 for none."""
    reading, writing = os.pipe()
    report = Path(f"{layout.cache}.struck")
    pid = os.fork()
    if not pid:
        os.close(reading)
        try:
            said = pickle.dumps(_part(part, layout, Fault(fault, number, report)))
            with open(writing, "wb") as pipe:  # not by os.write, which counts
                pipe.write(said)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    struck = report.read_text() if report.exists() else ""
    report.unlink(missing_ok=True)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if killed:
        return End(struck, None, "", (), killed)
    fields, unforeseen, left = pickle.loads(said)
    return End(struck, fields, unforeseen, left, killed)


def _part(
    part: Callable[[], object], layout: Layout, fault: Fault
) -> tuple[HpcimgError | None, str, tuple[str, ...]]:
    fault.install((*CALLS, *MORE_CALLS))
    error, unforeseen = None, ""
    try:
        part()
    except HpcimgError as met:
        error = met.with_traceback(None)
    except BaseException:
        unforeseen = traceback.format_exc()
    ours = processes.tag()
    directories = (layout.tmp, layout.work, layout.state_tmp)
    left = [path.name for directory in directories for path in Path(directory).glob(f"{ours}*")]
    left += [work["id"] for work in inflight.under_way(layout) if work["process"] == ours]
    return error, unforeseen, tuple(left)
