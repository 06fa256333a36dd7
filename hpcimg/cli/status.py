"""hpcimg status: the current state of this node."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from typing import Any

from hpcimg import status
from hpcimg.cache.paths import Layout
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.config.keys import Config
from hpcimg.errors import printable
from hpcimg.fetch.contract import MIRROR, ORIGIN, PEERS, SITE
from hpcimg.slurm import jobs
from hpcimg.units import format_duration, format_size

HELP = """show the cache, downloads in progress, and the jobs that wait for or use images

Counters start when the node boots. The exit code is 1 if there is a problem."""

# Labels of the events, in the order in which they are shown.
_COUNTS = {
    "hit": "hit{s}", "waited": "waited for another job", "fetched": "fetched",
    "unchanged": "asked, unchanged", "stale": "served while the server was down",
    "failed": "failed", "requeue": "requeued", "evict": "evicted",
    "sweep": "sweep{s} of leftovers", "sweep_failed": "failed sweep{s}",
    "site_failed": "passed over the site tier", "site_busy": "waited for the site tier in vain",
    "site_damaged": "damaged in the site tier",
}  # fmt: skip
_VIA = {
    ORIGIN: "from where the images are", MIRROR: "from mirrors", SITE: "from the site tier",
    PEERS: "from other nodes",
}  # fmt: skip
_INTERVAL_MIN_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_interval,
        const=2.0,
        metavar="SECONDS",
        help="repeat it, every 2 seconds by default",
    )


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _INTERVAL_MIN_S <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, at least 0.1")
    return seconds


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    if args.watch:
        _watch(conf, args.watch, json=args.json)
    seen = gather(conf)
    if args.json:
        output.print_json(seen)
    else:
        print("\n".join(lines(seen, columns=output.width())))
    return 1 if seen["problems"] else 0


def gather(conf: Config) -> dict[str, Any]:
    """Return everything to show: the node's status, and the jobs that wait."""
    seen = status.gather(conf)
    layout = Layout(conf.cache_path, conf.state_path)
    return {**seen, "waiting": jobs.waiting(layout, seen["staging"])}


def _watch(conf: Config, every_s: float, *, json: bool) -> None:
    """Repeat it until interrupted."""
    on_screen = not json and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    try:
        if on_screen:
            print("\x1b[?25l\x1b[2J", end="")  # hide the cursor, clear the screen
        while True:
            seen = gather(conf)
            if json:
                output.print_json(seen)
            elif on_screen:
                _redraw(lines(seen, columns=output.width()))
            else:
                print("\n".join(lines(seen, columns=output.width())), end="\n\n")
            sys.stdout.flush()
            time.sleep(every_s)
    finally:
        if on_screen:
            print("\x1b[?25h")


def _redraw(shown: list[str]) -> None:
    """Redraw the screen in a single write, without flicker."""
    rows = shutil.get_terminal_size().lines
    if len(shown) > rows - 1:
        shown = [*shown[: rows - 2], f"… {len(shown) - rows + 2} more lines"]
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")


def lines(seen: dict[str, Any], *, columns: int) -> list[str]:
    """Return the text for people, in lines of at most `columns`; 0 for any length."""
    shown = [output.painted(f"Node {seen['node']}, cache {seen['cache']['path']}", "bold")]
    shown += [line for text in _of_cache(seen) for line in _fit(f"  {text}", columns)]
    if seen["staging"]:
        heads = ("PHASE", "PROGRESS", ">RATE", ">SINCE", ">JOB", "FROM")
        rows = [_staging_row(work, columns) for work in seen["staging"]]
        shown += _part("In progress", output.table(heads, rows, columns=columns))
    if seen["waiting"]:
        waiters = [_waiting_row(waiter) for waiter in seen["waiting"]]
        titles = (">JOB", ">SINCE", "UNTIL", "FOR")
        shown += _part("Waiting", output.table(titles, waiters, columns=columns))
    if seen["failures"]:
        told: list[str] = []
        for event in seen["failures"]:
            at = output.when(event["time"])
            text = f"  {at} job {event.get('job') or '-'}: {event.get('message', '')}"
            told += _fit(printable(text), columns)
        shown += _part("Last failures", told)
    for problem in seen["problems"]:
        fitting = _fit(printable(f"PROBLEM: {problem}"), columns)
        shown += ["", *(output.painted(line, "red") for line in fitting)]
    return shown


def _part(title: str, below: list[str]) -> list[str]:
    return ["", output.painted(title, "bold"), *below]


def _fit(text: str, columns: int) -> list[str]:
    return output.wrapped(text, columns=columns, indent="    ")


def _of_cache(seen: dict[str, Any]) -> list[str]:
    cache = seen["cache"]
    told = [cache["note"]] if "note" in cache else []
    if "max_size" in cache:
        told.append(
            f"{output.bar(cache['bytes'], cache['max_size'])} {format_size(cache['bytes'])}"
            f" of {format_size(cache['max_size'])},"
            f" disk has {format_size(cache['free_bytes'])} free"
        )
    in_use = f"{cache['in_use_images']} ({format_size(cache['in_use_bytes'])}) of them in use"
    if cache["pinned_images"]:
        in_use += f", {cache['pinned_images']} ({format_size(cache['pinned_bytes'])}) pinned"
    told.append(f"images: {cache['images']}, {in_use}; jobs with images: {len(seen['jobs'])}")
    if cache["layers"]:
        size = format_size(cache["layer_bytes"])
        told.append(f"layers kept for the next image: {cache['layers']} ({size})")
    counts = [
        f"{count} {text.format(s='s' * (count != 1))}"
        for name, text in _COUNTS.items()
        if (count := seen["counts"].get(name))
    ]
    told.append(f"since boot: {', '.join(counts) or 'nothing yet'}")
    if seen["saved_bytes"] > 0:
        told.append(
            f"{format_size(seen['served_bytes'])} handed to jobs,"
            f" {format_size(seen['fetched_bytes'])} fetched:"
            f" {format_size(seen['saved_bytes'])} saved"
        )
    if set(seen["via"]) - {ORIGIN}:
        parts = [f"{format_size(size)} {_VIA[via]}" for via, size in sorted(seen["via"].items())]
        told.append(f"fetched {', '.join(parts)}")
    if seen["verified"]:
        last = seen["verified"]
        ago = format_duration(time.time() - last["time"])
        bad = f"{last['left']} of them damaged" if last["left"] else "none damaged"
        told.append(f"verified {ago} ago: {last['files']} files, {bad}")
    return told


def _staging_row(work: dict[str, Any], columns: int) -> tuple[object, ...]:
    done, total = work["bytes"], work["total"]
    took = max(time.time() - work["since"], 0.001)
    progress = format_size(done)
    if total:
        bar = output.bar(done, total, width=output.bar_width(columns))
        progress = f"{bar} of {format_size(total)}"
    rate = f"{format_size(done / took)}/s"
    return (
        work["phase"], progress, rate, format_duration(took), work["job"] or "-", work["uri"]
    )  # fmt: skip


def _waiting_row(waiter: dict[str, Any]) -> tuple[object, ...]:
    whose = ", ".join(job or "hpcimg stage" for job in waiter["for_jobs"])
    since = format_duration(time.time() - waiter["since"])
    until = f"{whose} has it" if whose else "its turn comes"
    return waiter["job"], since, until, " ".join(waiter["uris"])
