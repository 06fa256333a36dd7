"""hpcimg stage: bring images into this node's cache, as Prolog does."""

from __future__ import annotations

import argparse
import sys
import time

from hpcimg import logs, node
from hpcimg import stage as staging
from hpcimg.cache import history
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.errors import HpcimgError
from hpcimg.fetch.contract import Request
from hpcimg.site import policy
from hpcimg.units import format_duration, format_size

HELP = """bring images into this node's cache, as Prolog does

Prints the path of each image when it is whole. Run it as root on a node, for
example to warm a cache before a maintenance ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", nargs="+", metavar="URI", help="a reference, a path or an alias")


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    logs.set_up("stderr", name="stage")
    cache = node.open_cache(conf)
    results: list[dict[str, object]] = []
    for uri in args.uri:
        began = time.monotonic()
        wanted = policy.parse(conf, uri)
        try:
            with output.Meter() as meter:
                request = Request(wanted, began + conf.deadline_s, progress=meter.show, text=uri)
                staged = staging.stage(conf, cache, request, anew=True)
        except HpcimgError as error:
            took_s = time.monotonic() - began
            history.record_failure(cache.layout, error, job="", uri=wanted.uri, took_s=took_s)
            raise
        results.append({"uri": uri, "path": staged.path, "key": staged.entry.key,
                        "bytes": staged.entry.size_bytes, "how": staged.how})  # fmt: skip
        if not args.json:
            took = format_duration(time.monotonic() - began)
            size = format_size(staged.entry.size_bytes)
            print(f"{uri}: {staged.how}, {size} in {took}", file=sys.stderr)
            print(staged.path, flush=True)
    if args.json:
        output.print_json({"images": results})
    return 0
