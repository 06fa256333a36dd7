"""Retry-After, as registries write it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from hpcimg.http.waits import retry_after_s

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
YEARS = 10 * 365 * 86400.0


@pytest.fixture(autouse=True)
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    os.environ.pop("TZ")
    time.tzset()


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("0.5", 0.5),
        ("7, 9", 7.0),
        ("-1", 0.0),
        ("1700000030", 30.0),
        ("1700000030.5", 30.5),
        ("1700000030000", 30.0),
        ("1600000000", 0.0),
        ("9" * 30, YEARS),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tuesday, 14-Nov-23 22:13:50 GMT", 30.0),
        ("Tue Nov 14 22:13:50 2023", 30.0),
        ("Tue, 14 Nov 2023 22:13:50 -0000", 30.0),
        ("Wed, 15 Nov 2023 03:43:50 +0530", 30.0),
        ("Tue, 14 Nov 2000 22:13:50 GMT", 0.0),
        ("Tue, 14 Nov 9999 22:13:50 GMT", YEARS),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("1e400", None),
        ("\u0663", None),
        ("Tue, 99 Nov 2023 22:13:50 GMT", None),
        ("9" * 40, None),
    ],
)
def test_what_is_meant(text: str, wait_s: float | None) -> None:
    assert retry_after_s(text, now=NOW) == wait_s
