"""Log lines in systemd's journal: one datagram, with fields of our own."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg import journal, logs


class Journald:
    """Listens on a socket as journald does, and reads its native protocol."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.bind(str(path))

    def receive(self) -> dict[str, str]:
        data = self.socket.recv(1 << 18)
        found: dict[str, str] = {}
        while data:
            line, _, rest = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                size = int.from_bytes(rest[:8], "little")
                value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
            assert name.decode() not in found
            found[name.decode()] = value.decode()
            data = rest
        return found


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journald]:
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "socket"))
    server = Journald(tmp_path / "socket")
    yield server
    server.socket.close()
    logs.set_up("stderr", name="test")


def test_fields(journald: Journald) -> None:
    logs.set_up("syslog", name="prolog", job="4711")
    told = journal.fields(journal.STAGED, uri="docker://h/i", bytes=5, seconds=1.5, error=None)
    logging.getLogger("hpcimg.x").info("%s is here", "docker://h/i", extra=told)
    assert journald.receive() == {
        "MESSAGE": "prolog job 4711: INFO: docker://h/i is here",
        "MESSAGE_ID": journal.STAGED,
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "hpcimg",
        "SYSLOG_FACILITY": "3",
        "HPCIMG_JOB": "4711",
        "HPCIMG_URI": "docker://h/i",
        "HPCIMG_BYTES": "5",
        "HPCIMG_SECONDS": "1.5",
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, "2"), (logging.ERROR, "3"), (logging.WARNING, "4"), (logging.INFO, "6")],
)
def test_priorities(journald: Journald, level: int, priority: str) -> None:
    logs.set_up("syslog", name="gc")
    logging.getLogger("hpcimg.x").log(level, "x")
    seen = journald.receive()
    assert seen["PRIORITY"] == priority
    assert "HPCIMG_JOB" not in seen
    assert "MESSAGE_ID" not in seen


def test_a_hostile_value_does_not_become_a_field(journald: Journald) -> None:
    logs.set_up("syslog", name="prolog", job="1")
    told = journal.fields(uri="docker://h\nPRIORITY=0\n\udcff")
    logging.getLogger("hpcimg.x").error("a\nMESSAGE=b", extra=told)
    seen = journald.receive()
    assert seen["PRIORITY"] == "3"
    assert seen["MESSAGE"] == "prolog job 1: ERROR: a | MESSAGE=b"
    assert seen["HPCIMG_URI"] == "docker://h\nPRIORITY=0\n?"


def test_a_journal_that_is_gone_costs_the_line_and_nothing_else(journald: Journald) -> None:
    logs.set_up("syslog", name="prolog", job="1")
    journald.socket.close()
    logging.getLogger("hpcimg.x").error("x")


def test_without_a_journal_there_is_syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(logs, "_SYSLOG", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.settimeout(10)
        syslog.bind(str(tmp_path / "log"))
        logs.set_up("syslog", name="prolog", job="1")
        logging.getLogger("hpcimg.x").error("x", extra=journal.fields(journal.FAILED, uri="y"))
        assert syslog.recv(1000).endswith(b"prolog job 1: ERROR: x\0")
    logs.set_up("stderr", name="test")
