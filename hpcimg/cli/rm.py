"""hpcimg rm: remove images from this node."""

from __future__ import annotations

import argparse
import functools

from hpcimg import node
from hpcimg.cache import evict, lease, pins
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry
from hpcimg.cli import output, target
from hpcimg.config import load as config
from hpcimg.errors import HpcimgError, InUse
from hpcimg.units import format_size

HELP = """remove images from this node; the next job that requests one fetches it again

An image that is pinned or in use by a job stays, with exit code 24. It stops at
the first image that cannot be removed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="+", metavar="URI|KEY", help=target.HELP)


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = node.open_cache(conf).layout
    removed = []
    for text in args.image:
        entry = target.find(conf, layout, text)
        unpinned = functools.partial(_unpinned, layout, entry.key)
        if not evict.evict(layout, entry.key, reason="rm", may_go=unpinned):
            raise _kept(layout, entry)
        removed.append({"key": entry.key, "bytes": entry.size_bytes, "uris": entry.uris})
        if not args.json:
            print(f"{entry.key}: removed, {format_size(entry.size_bytes)}")
    if args.json:
        output.print_json({"removed": removed})
    return 0


def _unpinned(layout: Layout, key: str) -> bool:
    return pins.load(layout, key) is None


def _kept(layout: Layout, entry: Entry) -> HpcimgError:
    what = f"{entry.key} stays"
    jobs = sorted(lease.holders(layout, entry.key), key=lease.by_number)
    if jobs:
        return InUse(what, why=f"it is in use by job {', '.join(jobs)}")
    if pin := pins.load(layout, entry.key):
        return InUse(what, why=f"{pin.by or 'somebody'} pinned it", do="`hpcimg unpin` it first.")
    return InUse(what, why="a process is working on it")
