"""How subcommands print: tables and bars for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hpcimg.errors import HpcimgError, printable

VERSION = 1


def print_json(fields: dict[str, object]) -> None:
    """Print one JSON object; `version` changes when a field changes its meaning."""
    print(json.dumps({"version": VERSION, **fields}, indent=2))


def error_fields(error: HpcimgError) -> dict[str, object]:
    """Return what JSON says of an error."""
    return {**error.to_dict(), "class": error.kind, "exit_code": error.exit_code}


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their heads, aligned; heads that begin with `>` to the right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    names = [head.removeprefix(">") for head in heads]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for row in [names, *cells]:
        columns = [
            cell.rjust(width) if head.startswith(">") else cell.ljust(width)
            for cell, width, head in zip(row, widths, heads, strict=True)
        ]
        print("  ".join(columns).rstrip())


def bar(part: float, whole: float, *, width: int = 24) -> str:
    """Return a bar like `[######......]  50%`."""
    share = min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
    full = int(share * width)
    return f"[{'#' * full}{'.' * (width - full)}] {share:4.0%}"
