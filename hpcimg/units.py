"""Parsing and formatting of sizes and times."""

from __future__ import annotations

_BINARY = "BKMGTP"
_DIGITS_MAX = 16  # more exceeds any clock or disk
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(text: str) -> int:
    """Parse `200G`, `1.5 TiB`, `4096` as bytes; units are powers of 1024.

    Raises ValueError with a valid example.
    """
    number, unit = _split(text)
    letter = unit.upper().removesuffix("IB").removesuffix("B") or "B"
    if number is None or len(letter) != 1 or letter not in _BINARY:
        raise ValueError(f"{text!r} is not a size; write 500M, 200G or 1.5T")
    return int(number * 1024 ** _BINARY.index(letter))


def parse_percent(text: str) -> float:
    """Parse `80%` as 80.0. Raises ValueError outside 0 to 100."""
    number, unit = _split(text)
    if number is None or unit != "%" or number > 100:
        raise ValueError(f"{text!r} is not a percentage; write 80%")
    return number


def parse_duration(text: str) -> float:
    """Parse `90s`, `9m`, `1h`, `2d` as seconds; a bare number is seconds."""
    number, unit = _split(text)
    if number is None or unit.lower() not in ("", *_SECONDS):
        raise ValueError(f"{text!r} is not a time; write 90s, 9m, 1h or 2d")
    return number * _SECONDS[unit.lower() or "s"]


def format_size(size_bytes: float) -> str:
    """Format bytes for people: `512 B`, `1.5 GiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Format a time for people: `45 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    whole = max(0, round(seconds))
    steps = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    for size, name, smaller, smaller_name in steps:
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def _split(text: str) -> tuple[float | None, str]:
    text = text.strip()
    digits = len(text) - len(text.lstrip("0123456789."))
    if digits > _DIGITS_MAX:
        return None, text
    try:
        return float(text[:digits]), text[digits:].strip()
    except ValueError:
        return None, text
