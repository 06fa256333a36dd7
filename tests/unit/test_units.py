"""Sizes and times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.units import format_duration, format_size, parse_duration, parse_percent, parse_size

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1K", KIB),
        ("1k", KIB),
        ("1KB", KIB),
        ("1KiB", KIB),
        ("500M", 500 * MIB),
        ("200G", 200 * GIB),
        ("200 GiB", 200 * GIB),
        (" 1.5T ", TIB + TIB // 2),
        ("1P", 1024 * TIB),
        (".5M", MIB // 2),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1G",
        "1X",
        "5MG",
        "5KM",
        "1e3",
        "1,5G",
        "1.2.3G",
        "80%",
        "inf",
        "nan",
        "\u0661G",
        "9" * 400,
    ],
)
def test_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write"):
        parse_size(text)


@pytest.mark.parametrize(("text", "percent"), [("0%", 0), ("80%", 80), ("99.5 %", 99.5)])
def test_percentages(text: str, percent: float) -> None:
    assert parse_percent(text) == percent


@pytest.mark.parametrize("text", ["", "80", "101%", "-1%", "80%%", "%"])
def test_not_percentages(text: str) -> None:
    with pytest.raises(ValueError, match="is not a percentage; write"):
        parse_percent(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("9m", 540), ("1h", 3600), ("2d", 172800), ("0.5 H", 1800)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1s", "1w", "1 min", "sm", "1:30"])
def test_not_times(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time; write"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (300 * MIB, "300 MiB"),
        (41 * GIB, "41.0 GiB"),
        (5000 * TIB, "5000 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (99 * 3600, "4 d 3 h"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 1 << 60))
def test_a_size_for_people_is_read_as_about_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06)
