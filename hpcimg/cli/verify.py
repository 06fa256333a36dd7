"""hpcimg verify: check every file against what was stored."""

from __future__ import annotations

import argparse
import sys
import time

from hpcimg import node
from hpcimg.cache import events, scrub, store
from hpcimg.cache.scrub import Damage, Result
from hpcimg.cli import output, target
from hpcimg.config import load as config
from hpcimg.errors import printable
from hpcimg.units import format_duration, format_size, parse_size

HELP = """read every file of the cache and compare it with its recorded sha256

The exit code is 1 if a file is damaged. Without --repair, it is only reported.
Files in use by a job are never removed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="*", metavar="URI|KEY", help=f"only these: {target.HELP}")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="remove damaged files: the next job that requests one fetches it again",
    )
    parser.add_argument(
        "--rate",
        type=_rate,
        default=float(100 << 20),
        metavar="SIZE",
        help="read at most this much per second, 100M by default; 0 for no limit",
    )


def _rate(text: str) -> float:
    try:
        return float(parse_size(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = node.open_cache(conf).layout
    if args.image:
        entries = [target.find(conf, layout, text) for text in args.image]
    else:
        # Including those whose files have another length: these are being searched for.
        records = (store.load_record(layout, key) for key in sorted(store.keys(layout)))
        entries = [entry for entry in records if entry]
    total = sum(entry.size_bytes for entry in entries)
    done, began = 0, time.monotonic()
    with output.Meter() as meter:

        def progress(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            meter.show("verifying", done, total)

        def found(damage: Damage) -> None:
            meter.clear()
            print(printable(f"hpcimg: {_sentence(damage)}"), file=sys.stderr)

        result = scrub.scrub(
            layout,
            entries,
            rate_bytes=args.rate,
            repair=args.repair,
            progress=progress,
            found=found,
        )
    took_s = time.monotonic() - began
    if not args.image:
        scrub.remember(layout, result)
    events.record(
        layout.events, "verify", files=result.files, bytes=result.size_bytes,
        damaged=len(result.damaged), left=result.left, took_s=round(took_s, 3),
    )  # fmt: skip
    if args.json:
        output.print_json({
            "files": result.files,
            "bytes": result.size_bytes,
            "took_s": round(took_s, 3),
            "damaged": [damage._asdict() for damage in result.damaged],
        })  # fmt: skip
    else:
        print(_summary(result, took_s))
    return 1 if result.damaged else 0


def _sentence(damage: Damage) -> str:
    became = "it was removed" if damage.removed else "it was left"
    if damage.jobs and not damage.removed:
        became = f"it was left, job {', '.join(damage.jobs)} uses it"
    return f"{damage.path} is damaged: {damage.why}; {became}"


def _summary(result: Result, took_s: float) -> str:
    text = (
        f"{result.files} files, {format_size(result.size_bytes)} read in {format_duration(took_s)}"
    )
    if not result.damaged:
        return f"{text}: all are intact"
    removed = len(result.damaged) - result.left
    return f"{text}: {len(result.damaged)} damaged, {removed} of them removed"
