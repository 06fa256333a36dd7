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
            with _Meter() as meter:
                request = Request(wanted, began + conf.deadline_s, progress=meter.show)
                staged = staging.stage(conf, cache, request, text=uri, anew=True)
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


class _Meter:
    """A bar on a terminal, a line every few seconds elsewhere; on standard error."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0.0 if self._terminal else 5.0)
        self._drawn = False

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            print(file=sys.stderr)

    def show(self, phase: str, done: int, total: int | None) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.2 if self._terminal else 5.0)
        text = f"{output.bar(done, total)} of {format_size(total)}" if total else format_size(done)
        if self._terminal:
            print(f"\r\x1b[K{phase} {text}", end="", file=sys.stderr, flush=True)
            self._drawn = True
        else:
            print(f"{phase} {text}", file=sys.stderr, flush=True)
