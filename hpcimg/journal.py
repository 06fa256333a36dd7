"""Log lines for systemd's journal, with fields in addition to the text.

One datagram per line on journald's socket, in its native protocol
(systemd.io/JOURNAL_NATIVE_PROTOCOL), without a library. Callers pass the fields as
`extra=fields(...)`; `journalctl -t hpcimg HPCIMG_JOB=4711` finds them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import Any

SOCKET = "/run/systemd/journal/socket"
# Kinds of messages; `journalctl MESSAGE_ID=…` finds all of one kind. Generated once, at random.
STAGED = "4ad76a2b35b946d8a1c2e8e77d4f9c11"
FAILED = "c1f0e6bfa5704ad2b1f6f5d06d6f7a52"
REQUEUED = "9f5d2c8e07c14f6fb6a50c3a2b8e6d93"
EVICTED = "e3b7a1d4986c4d0f8c5f14b0a7d2c6e4"
_PRIORITIES = (
    (logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6),
)  # fmt: skip
_ATTRIBUTE = "hpcimg_fields"
_VALUE_MAX = 16_000  # bytes; a datagram could hold more, but no line needs it


def fields(message_id: str = "", **values: object) -> dict[str, object]:
    """Return the `extra` of a log call: logged as HPCIMG_<NAME>, unless the value is None."""
    named = {f"HPCIMG_{name.upper()}": value for name, value in values.items() if value is not None}
    return {_ATTRIBUTE: {**({"MESSAGE_ID": message_id} if message_id else {}), **named}}


class JournalHandler(logging.Handler):
    """Sends log lines to journald, each with the field `job`. Raises OSError if there is none.

    A line that cannot be sent is lost: if the journal is gone, so is syslog behind it.
    """

    def __init__(self, *, job: str = "") -> None:
        super().__init__()
        self._job = job
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)  # a stuck journal must not hold up a job
            self._socket.connect(SOCKET)
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(self._datagram(record))

    def _datagram(self, record: logging.LogRecord) -> bytes:
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 7)
        told: dict[str, Any] = {
            "MESSAGE": self.format(record),
            "PRIORITY": priority,
            "SYSLOG_IDENTIFIER": "hpcimg",
            "SYSLOG_FACILITY": 3,  # daemon
        }
        if self._job:
            told["HPCIMG_JOB"] = self._job
        told.update(getattr(record, _ATTRIBUTE, {}))
        return b"".join(_field(name, str(value)) for name, value in told.items())

    def close(self) -> None:
        self._socket.close()
        super().close()


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")[:_VALUE_MAX]
    if b"\n" in data:  # preceded by its length, so that no value can become another field
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
