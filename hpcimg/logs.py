"""Where log lines go: syslog, standard error, or a file, as configured.

If systemd's journal is behind syslog, it gets the lines with structured fields.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from hpcimg.errors import printable
from hpcimg.journal import JournalHandler

_SYSLOG = "/dev/log"
_LINE_MAX = 16 << 10  # characters
_DATED = "%(asctime)s hpcimg "


def set_up(to: str, *, name: str, job: str = "") -> None:
    """Send log lines to `to`: syslog, stderr, or a path. Lines name the hook and the job.

    If the target cannot be opened, they go to standard error: a node with a full log file still
    stages images.
    """
    who = f"{name} job {job}" if job else name
    handler, before = _open(to, job)
    # A line that quotes a hostile reference stays a single line.
    handler.setFormatter(_OneLine(f"{before}{who}: %(levelname)s: %(message)s"))
    root = logging.getLogger("hpcimg")
    for old in root.handlers:
        old.close()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False  # slurmd need not hear about a broken log
    root.propagate = False


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # A traceback has many lines, and may quote what a server sent.
        lines = super().format(record)[:_LINE_MAX].split("\n")
        return " | ".join(printable(line) for line in lines)


def _open(to: str, job: str) -> tuple[logging.Handler, str]:
    """Return a handler, and how its lines begin."""
    try:
        if to == "syslog":
            with contextlib.suppress(OSError):
                return JournalHandler(job=job), ""
            os.stat(_SYSLOG)  # the handler itself would not notice until the first line
            from logging.handlers import SysLogHandler  # not needed with a journal

            handler = SysLogHandler(_SYSLOG, facility="daemon")
            return handler, f"hpcimg[{os.getpid()}]: "
        if to != "stderr":
            return logging.FileHandler(to), _DATED
    except OSError:
        pass
    return logging.StreamHandler(sys.stderr), _DATED
