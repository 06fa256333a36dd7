"""Log lines: one for each message, without control characters for a terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg import logs


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("hpcimg")
    kept = logger.handlers[:], logger.level, logger.propagate, logging.raiseExceptions
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level, logger.propagate, logging.raiseExceptions = kept


def test_what_a_server_sent_stays_one_harmless_line(log: logging.Logger, tmp_path: Path) -> None:
    logs.set_up(str(tmp_path / "log"), name="prolog", job="1")
    log.error("%s", "Traceback:\n  \x1b]0;owned\x07 \x9b2J \u202e \udcff \r")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        log.exception("it broke")
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert r"Traceback: |   \x1b]0;owned\x07 \x9b2J" in lines[0]
    assert r"ValueError: \x1b[2J" in lines[1]
