"""hpcimg gc: what Epilog does, and cleaning up after jobs without an Epilog."""

from __future__ import annotations

import argparse
import logging

from hpcimg import logs, node
from hpcimg.cache import events, evict, history, lease, store, trash
from hpcimg.cache.paths import Layout
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError
from hpcimg.slurm import jobfiles, query
from hpcimg.tier.tidy import tidy
from hpcimg.units import format_size

HELP = """evict down to the low watermark and clean up after ended jobs

Drops the leases of jobs that Slurm does not know (any more), sweeps leftovers of
killed processes, and evicts the least recently used images if the cache is above
its high watermark or the disk below min_free. With --site, evicts from the site tier
instead: what no node has requested within max_age, and what exceeds max_size."""

log = logging.getLogger(__name__)
_TIME_S = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be removed, and change nothing"
    )
    parser.add_argument(
        "--site", action="store_true", help="clean up the site tier for all nodes, and no cache"
    )


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    logs.set_up("stderr", name="gc")
    if args.site:
        return _tidy_site(conf, args)
    query.look_in(conf.slurm_bin)
    cache = node.cache_of(conf) if args.dry_run else node.open_cache(conf)
    layout = cache.layout
    ended = _ended_jobs(layout)
    orphans = 0
    if not args.dry_run:
        for job in ended:
            jobfiles.release(layout, job)
        orphans = store.sweep_orphans(layout)
        trash.empty_all(layout, time_s=_TIME_S)
        history.rotate(layout)
    report = evict.trim(layout, cache.limits, time_s=_TIME_S, dry_run=args.dry_run)
    if not args.dry_run:
        events.record(layout.events, "gc", bytes=report.freed_bytes, ended_jobs=len(ended))
    if args.json:
        output.print_json({
            "dry_run": args.dry_run,
            "ended_jobs": ended,
            "orphans": orphans,
            "wanted_bytes": report.plan.wanted_bytes,
            "freed_bytes": report.freed_bytes,
            "evicted": [candidate.key for candidate in report.evicted],
        })  # fmt: skip
        return 0
    would = "would be " if args.dry_run else ""
    for candidate in report.evicted:
        print(f"{candidate.key}: {would}evicted, {format_size(candidate.size_bytes)}")
    for job in ended:
        print(f"job {job}: ended, its leases {would}dropped")
    print(
        f"{format_size(report.freed_bytes)} {would}freed"
        f" of {format_size(report.plan.wanted_bytes)} wanted: {report.plan.describe()}"
    )
    return 0


def _tidy_site(conf: Config, args: argparse.Namespace) -> int:
    report = tidy(conf, dry_run=args.dry_run)
    if args.json:
        output.print_json({
            "dry_run": args.dry_run,
            "busy": report.busy,
            "freed_bytes": report.freed_bytes,
            "held_bytes": report.held_bytes,
            "evicted": [image.name for image in report.images],
            "others": report.others,
        })  # fmt: skip
        return 0
    if report.busy:
        print("another node is doing it")
        return 0
    would = "would be " if args.dry_run else ""
    for image in report.images:
        print(f"{image.name}: {would}evicted, {format_size(image.size_bytes)}")
    print(f"{format_size(report.freed_bytes)} {would}freed of {format_size(report.held_bytes)}")
    return 0


def _ended_jobs(layout: Layout) -> list[str]:
    """Return the jobs that no Epilog cleared away, none where Slurm cannot be asked."""
    jobs = sorted(lease.all_jobs(layout) | jobfiles.all_jobs(layout), key=lease.by_number)
    if not jobs:
        return []
    slurm = query.open_slurm()
    try:
        return [job for job in jobs if not slurm.alive(job)]
    except HpcimgError as error:
        log.warning("leases were not checked: %s", error)
        return []
