"""Where log lines go: syslog, standard error, or a file, as configured.

If systemd's journal is behind syslog, it gets the lines with structured fields.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys

from hpcimg.errors import printable
from hpcimg.journal import JournalHandler

_SYSLOG = "/dev/log"
_LINE_MAX = 16 << 10  # characters


def set_up(to: str, *, name: str, job: str = "") -> None:
    """Send log lines to `to`: syslog, stderr, or a path. Lines name the hook and the job.

    If the target cannot be opened, they go to standard error: a node with a full log file still
    stages images.
    """
    who = f"{name} job {job}" if job else name
    handler = _open(to, job)
    # A line that quotes a hostile reference stays a single line.
    handler.setFormatter(_OneLine(f"%(asctime)s hpcimg {who}: %(levelname)s: %(message)s"))
    if isinstance(handler, JournalHandler):
        handler.setFormatter(_OneLine(f"{who}: %(levelname)s: %(message)s"))
    if isinstance(handler, logging.handlers.SysLogHandler):
        handler.setFormatter(_OneLine(f"hpcimg[{os.getpid()}]: {who}: %(levelname)s: %(message)s"))
    root = logging.getLogger("hpcimg")
    for before in root.handlers:
        before.close()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False  # slurmd need not hear about a broken log
    root.propagate = False


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # A traceback has many lines, and may quote what a server sent.
        lines = super().format(record)[:_LINE_MAX].split("\n")
        return " | ".join(printable(line) for line in lines)


def _open(to: str, job: str) -> logging.Handler:
    try:
        if to == "syslog":
            with contextlib.suppress(OSError):
                return JournalHandler(job=job)
            os.stat(_SYSLOG)  # the handler itself would not notice until the first line
            return logging.handlers.SysLogHandler(_SYSLOG, facility="daemon")
        if to != "stderr":
            return logging.FileHandler(to)
    except OSError:
        pass
    return logging.StreamHandler(sys.stderr)
