"""hpcimg status: what is going on on this node."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from hpcimg import status
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.errors import printable
from hpcimg.units import format_duration, format_size

HELP = """show the cache, the downloads under way, the jobs that use images

Counts are since the node booted. Exit code 1 where a problem was found."""

# What the events are called here, in the order in which they are shown.
_COUNTS = {
    "hit": "hits", "waited": "waited for another job", "fetched": "fetched",
    "unchanged": "asked, unchanged", "stale": "served while the server was down",
    "failed": "failed", "requeue": "requeued", "evict": "evicted",
    "sweep": "times leftovers were swept", "sweep_failed": "times they could not be",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="show it again and again, every 2 seconds if not said otherwise",
    )


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    while True:
        seen = status.gather(conf)
        if args.json:
            output.print_json(seen)
        else:
            if args.watch and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            _print(seen)
        if not args.watch:
            return 1 if seen["problems"] else 0
        sys.stdout.flush()
        time.sleep(args.watch)


def _print(seen: dict[str, Any]) -> None:
    cache = seen["cache"]
    print(f"Node {seen['node']}, cache {cache['path']}")
    if "note" in cache:
        print(f"  {cache['note']}")
    if "max_size" in cache:
        print(
            f"  {output.bar(cache['bytes'], cache['max_size'])} {format_size(cache['bytes'])}"
            f" of {format_size(cache['max_size'])},"
            f" disk has {format_size(cache['free_bytes'])} free"
        )
    in_use = f"{cache['in_use_images']} ({format_size(cache['in_use_bytes'])}) of them in use"
    print(f"  images: {cache['images']}, {in_use}; jobs with images: {len(seen['jobs'])}")
    if cache["layers"]:
        size = format_size(cache["layer_bytes"])
        print(f"  layers kept for the next image: {cache['layers']} ({size})")
    counts = [f"{seen['counts'][name]} {text}" for name, text in _COUNTS.items()
              if seen["counts"].get(name)]  # fmt: skip
    print(f"  since boot: {', '.join(counts) or 'nothing yet'}")
    if seen["staging"]:
        print("\nUnder way")
        output.print_table(
            ("PHASE", "PROGRESS", ">RATE", ">SINCE", ">JOB", "FROM"),
            [_staging_row(work) for work in seen["staging"]],
        )
    if seen["failures"]:
        print("\nLast failures")
        for event in seen["failures"]:
            at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
            print(printable(f"  {at} job {event.get('job') or '-'}: {event.get('message', '')}"))
    for problem in seen["problems"]:
        print(f"\nPROBLEM: {problem}")


def _staging_row(work: dict[str, Any]) -> tuple[object, ...]:
    done, total = work["bytes"], work["total"]
    took = max(time.time() - work["since"], 0.001)
    progress = f"{output.bar(done, total)} of {format_size(total)}" if total else format_size(done)
    rate = f"{format_size(done / took)}/s"
    return (
        work["phase"], progress, rate, format_duration(took), work["job"] or "-", work["uri"]
    )  # fmt: skip
