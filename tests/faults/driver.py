"""Run a part of hpcimg with a fault at its n-th change of the file system.

Started as a process of its own, by steps.py:

    python driver.py FAULT N REPORT MODULE [ARGUMENT...]

calls MODULE's main with the arguments. FAULT is `kill`, SIGKILL instead of the
call, or the name of an errno that the call fails with, once. What was struck is
written to the file REPORT; there is none where the part made fewer calls.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import posix
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
# What hpcimg changes files with; of `open`, what may make one.
CALLS = ("open", "write", "fsync", "rename", "unlink", "rmdir", "mkdir", "fchown", "utime")
# Those besides, where a run costs little.
MORE_CALLS = ("pwrite", "ftruncate", "fchmod", "chmod", "chown")


class Fault:
    """Counts this process's calls, and makes one of them fail."""

    def __init__(self, kind: str, number: int, report: Path) -> None:
        self._kind = kind
        self._left = number
        self._report = report
        self._process = os.getpid()  # what it forks to look at a path changes nothing

    def install(self, calls: tuple[str, ...] = CALLS) -> None:
        """Wrap the functions of the os module, and those that it has from posix."""
        for module, name in itertools.product((os, posix), calls):
            setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name: str, real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            ours = os.getpid() == self._process
            if ours and (name != "open" or args[1] & os.O_CREAT):
                self._left -= 1
                if self._left == 0:
                    self._strike(name, args)
            return real(*args, **options)

        return call

    def _strike(self, name: str, args: tuple[Any, ...]) -> NoReturn:
        paths = [arg for arg in args if isinstance(arg, str)]
        self._report.write_text(" ".join([name, *paths]))
        if self._kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self._kind)
        raise OSError(code, os.strerror(code), *paths[:1])


def main() -> None:
    fault, number, report, module, *arguments = sys.argv[1:]
    sys.path.insert(0, str(ROOT))
    part = importlib.import_module(module)
    Fault(fault, int(number), Path(report)).install()
    sys.exit(part.main(*arguments))


if __name__ == "__main__":
    main()
