"""How subcommands print: tables and bars for people, JSON for programs.

On a terminal lines fit its width, and there is colour unless NO_COLOR is set or
TERM is dumb; elsewhere there is neither.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence

from hpcimg.errors import HpcimgError, printable
from hpcimg.units import format_size

VERSION = 1
_STYLES = {"bold": "1", "red": "1;31", "yellow": "33", "green": "32"}
_LAST_MIN = 16  # columns; a last column that has fewer is cut off no further
_WIDE = 120


def print_json(fields: dict[str, object]) -> None:
    """Print one JSON object; `version` changes when a field changes its meaning."""
    print(json.dumps({"version": VERSION, **fields}, indent=2))


def error_fields(error: HpcimgError) -> dict[str, object]:
    """Return what JSON says of an error."""
    return {**error.to_dict(), "class": error.kind, "exit_code": error.exit_code}


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their heads, as `table` makes them."""
    print("\n".join(table(heads, rows)))


def width() -> int:
    """Return how many columns the terminal has, 0 where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def table(
    heads: Sequence[str], rows: Sequence[Sequence[object]], *, columns: int = -1
) -> list[str]:
    """Return rows under their heads, aligned; heads that begin with `>` to the right.

    Where a line is longer than `columns` (those of the terminal, if not said
    otherwise; 0 for no limit), the last cell loses its middle.
    """
    columns = width() if columns < 0 else columns
    cells = [[str(cell) for cell in row] for row in rows]
    if not all("".join(row).isprintable() for row in cells):  # hardly ever, and rows may be many
        cells = [[printable(cell) for cell in row] for row in cells]
    names = [head.removeprefix(">") for head in heads]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    before = sum(widths[:-1]) + 2 * (len(widths) - 1)
    if columns:
        widths[-1] = min(widths[-1], max(columns - before, _LAST_MIN))
    form = "  ".join(
        f"{{:{'>' if head.startswith('>') else '<'}{width}}}"
        for head, width in zip(heads, widths, strict=True)
    )
    lines = []
    for row in [names, *cells]:
        row[-1] = shortened(row[-1], widths[-1])
        lines.append(form.format(*row).rstrip())
    lines[0] = painted(lines[0], "bold")
    return lines


def shortened(text: str, columns: int) -> str:
    """Return the text without its middle where it is too long: of an address, both ends count."""
    if len(text) <= columns:
        return text
    end = (columns - 1) * 2 // 3
    return f"{text[: columns - 1 - end]}…{text[len(text) - end :]}"


def wrapped(text: str, *, columns: int, indent: str = "  ") -> list[str]:
    """Return a sentence as lines that fit, the further ones indented; 0 for one line."""
    if not columns:
        return [text]
    return textwrap.wrap(text, max(columns, 40), subsequent_indent=indent, break_on_hyphens=False)


def bar(part: float, whole: float, *, width: int = 24) -> str:
    """Return a bar like `[######......]  50%`."""
    share = min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
    full = int(share * width)
    return f"[{'#' * full}{'.' * (width - full)}] {share:4.0%}"


def bar_width(columns: int) -> int:
    """Return how wide bars are in a table that has to fit."""
    return 24 if not columns or columns >= _WIDE else 8


def coloured() -> bool:
    """Tell whether standard output is a terminal that is to have colours (no-color.org)."""
    return (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def when(time_s: object) -> str:
    """Return a Unix time as the clock had it, with the day where it is another one."""
    if not isinstance(time_s, (int, float)):
        return "-"
    at, now = time.localtime(time_s), time.localtime()
    same_day = at[:3] == now[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", at)


def painted(text: str, style: str) -> str:
    """Return the text in a style (bold, red, yellow, green) where there is colour."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if coloured() else text


class Meter:
    """A bar on a terminal, a line every few seconds elsewhere; on standard error."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._next = time.monotonic() + (0.0 if self._terminal else 5.0)
        self._drawn = False

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            print(file=sys.stderr)

    def show(self, phase: str, done: int, total: int | None) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.2 if self._terminal else 5.0)
        text = f"{bar(done, total)} of {format_size(total)}" if total else format_size(done)
        if self._terminal:
            print(f"\r\x1b[K{phase} {text}", end="", file=sys.stderr, flush=True)
            self._drawn = True
        else:
            print(f"{phase} {text}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a line that is printed while the bar is there."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
