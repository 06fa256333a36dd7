"""hpcimg check: what would happen to a reference, before a job is submitted."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpcimg import logs
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.errors import MissingTool, printable
from hpcimg.units import format_size

if TYPE_CHECKING:
    from hpcimg.check import Checked

HELP = """say what would happen to a job's image, without fetching it

Runs anywhere, also on a login node: it needs neither a cache nor root. Servers are
contacted as you, with your own logins. The exit code is that of the first URI that would
fail."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", nargs="+", metavar="URI", help="a reference, a path or an alias")


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    logs.set_up("stderr", name="check")
    try:  # here, since the sources' libraries take longer to import than other commands to run
        from hpcimg import check
    except ModuleNotFoundError as error:
        raise MissingTool.of_package(error) from None
    found = check.check(conf, args.uri)
    if args.json:
        output.print_json({"images": [_fields(each) for each in found]})
    else:
        for each in found:
            print("\n".join(_lines(each)))
    return next((each.error.exit_code for each in found if each.error), 0)


def _lines(checked: Checked) -> list[str]:
    if checked.error:
        lines = [f"{checked.uri}: would fail", f"  hpcimg: {checked.error}"]
    else:
        size = "unknown" if checked.size_bytes is None else format_size(checked.size_bytes)
        size += f" in {checked.layers} layers" if checked.layers else ""
        rows = [
            ("digest", checked.digest),
            ("pinned", checked.pinned),
            ("size", size),
            ("processors", ", ".join(checked.processors)),
            ("format", checked.format),
        ]
        lines = [f"{checked.uri}: would be staged"]
        lines += [f"  {name:10}  {value}" for name, value in rows if value]
    return [printable(line) for line in [*lines, *(f"  {note}" for note in checked.notes)]]


def _fields(checked: Checked) -> dict[str, object]:
    fields: dict[str, object] = {
        "uri": checked.uri,
        "would_work": checked.error is None,
        "digest": checked.digest,
        "pinned": checked.pinned,
        "bytes": checked.size_bytes,
        "layers": checked.layers,
        "processors": checked.processors,
        "format": checked.format,
        "notes": checked.notes,
    }
    if checked.error:
        fields.update(output.error_fields(checked.error), message=str(checked.error))
    return fields
