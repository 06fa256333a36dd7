"""hpcimg ls: the images on this node."""

from __future__ import annotations

import argparse
import time

from hpcimg.cache import index, lease, pins, store
from hpcimg.cache.paths import Layout
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.units import format_duration, format_size

HELP = """list the images on this node, most recently used first

JOBS is the number of jobs that use an image now; such an image is never
evicted, nor is one that is PINNED. OWNER is the uid of a private image, which
only root sees."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = Layout(conf.cache_path, conf.state_path)
    held: dict[str, list[str]] = {}
    for job, keys in lease.by_job(layout).items():
        for key in keys:
            held.setdefault(key, []).append(job)
    found = [
        (used, entry, sorted(held.get(entry.key, ())))
        for entry, used in index.entries(layout)
        if not entry.is_blob
    ]
    pinned = {key: pins.load(layout, key) for key in pins.keys(layout)}
    found.sort(key=lambda row: row[0], reverse=True)
    if args.json:
        images = [
            {**entry._asdict(), "last_used": used, "jobs": jobs,
             "path": store.path_of(layout, entry), "pinned": _pin(pinned.get(entry.key))}
            for used, entry, jobs in found
        ]  # fmt: skip
        output.print_json({"images": images})
        return 0
    now = time.time()
    heads = ["SHA256", ">SIZE", "FORMAT", "OWNER", "USED", ">JOBS", "FROM"]
    rows: list[list[object]] = [
        [
            entry.sha256[:12],
            format_size(entry.size_bytes),
            entry.extension,
            "shared" if entry.owner is None else entry.owner,
            f"{format_duration(now - used)} ago",
            len(jobs),
            " ".join(entry.uris),
        ]
        for used, entry, jobs in found
    ]
    if pinned:
        heads.insert(-1, "PINNED")
        for row, (_, entry, _) in zip(rows, found, strict=True):
            pin = pinned.get(entry.key)
            row.insert(-1, f"by {pin.by or '?'}" if pin else "-")
    output.print_table(heads, rows)
    return 0


def _pin(pin: pins.Pin | None) -> dict[str, object] | None:
    return {"by": pin.by, "time": pin.time} if pin else None
