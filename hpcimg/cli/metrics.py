"""hpcimg metrics: this node's metrics for Prometheus."""

from __future__ import annotations

import argparse
import os

from hpcimg import atomic, health, metrics
from hpcimg.cache import inflight
from hpcimg.cache.paths import Layout
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.errors import CacheUnusable
from hpcimg.slurm import jobs

HELP = """print metrics for Prometheus, or write them to a file for node_exporter

Run it as root, from a timer. The exit code is 0, whatever the metrics say."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--textfile",
        type=_prom,
        metavar="PATH",
        help="replace this file, whose name ends in .prom, instead of printing",
    )


def _prom(path: str) -> str:
    if not path.endswith(".prom"):
        raise argparse.ArgumentTypeError(f"{path!r} does not end in .prom; others are not read")
    return os.path.abspath(path)


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = Layout(conf.cache_path, conf.state_path)
    _, findings = health.node()
    waiting = jobs.waiting(layout, inflight.under_way(layout))
    families = metrics.gather(conf, findings, waiting=len(waiting))
    text = metrics.text(families)
    if args.textfile:
        _replace(args.textfile, text)
    elif not args.json:
        print(text, end="")
    if args.json:
        output.print_json({
            "metrics": [
                {**family._asdict(), "samples": [sample._asdict() for sample in family.samples]}
                for family in families
            ]
        })  # fmt: skip
    return 0


def _replace(path: str, text: str) -> None:
    """Write the text by a rename: the collector reads all of it or the previous one."""
    try:
        # Its temporary name must not end in .prom.
        atomic.write_file(path, text, mode=0o644)
    except OSError as error:
        raise CacheUnusable(
            f"{path} cannot be written",
            why=error.strerror or str(error),
            do="Name a file in the directory given to node_exporter --collector.textfile.directory",
        ) from error
