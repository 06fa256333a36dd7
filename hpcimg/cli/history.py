"""hpcimg history: what happened on this node lately."""

from __future__ import annotations

import argparse
import collections
from typing import Any

from hpcimg.cache import history, store
from hpcimg.cache.paths import Layout
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.units import format_duration, format_size

HELP = """list recent events on this node, the latest last

reference-files.md describes the events. They are lost at a reboot, and the oldest
are dropped over time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--last",
        type=int,
        default=20,
        metavar="N",
        help="the last N events, 20 by default; 0 for all",
    )
    parser.add_argument("--job", metavar="JOB", default="", help="only events of this job")
    parser.add_argument(
        "--event", metavar="EVENT", default="", help="only events of this kind, such as failed"
    )


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = Layout(conf.cache_path, conf.state_path)
    wanted = (
        event
        for event in history.recent(layout)
        if args.job in ("", event.get("job")) and args.event in ("", event["event"])
    )
    found = list(collections.deque(wanted, maxlen=args.last if args.last > 0 else None))
    if args.json:
        output.print_json({"events": found})
        return 0
    names: dict[str, str] = {}
    rows = [row(event, _what(layout, event, names)) for event in found]
    output.print_table(("TIME", "EVENT", ">JOB", ">SIZE", ">TOOK", "WHAT"), rows)
    return 0


def row(event: dict[str, Any], what: str) -> tuple[object, ...]:
    """Return one event as a row of the table."""
    size, took = event.get("bytes"), event.get("took_s")
    return (
        output.when(event["time"]),
        event["event"],
        event.get("job") or "-",
        format_size(size) if isinstance(size, (int, float)) else "-",
        seconds(took) if isinstance(took, (int, float)) else "-",
        what,
    )


def seconds(took_s: float) -> str:
    """Write a short time with its fractions, a long one as elsewhere."""
    return f"{took_s:.2f} s" if took_s < 10 else format_duration(took_s)


def _what(layout: Layout, event: dict[str, Any], names: dict[str, str]) -> str:
    key = str(event.get("key", ""))
    if key and key not in names:
        entry = store.load_record(layout, key)
        names[key] = entry.uris[-1] if entry and entry.uris else key
    said = (names.get(key), event.get("message"), event.get("uri"))
    counted = [f"{n} {event[n]}" for n in ("files", "damaged", "left", "reason") if n in event]
    return " ".join([next((str(text) for text in said if text), ""), *counted]).strip()
