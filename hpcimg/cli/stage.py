"""hpcimg stage: stage images in this node's cache, as Prolog does."""

from __future__ import annotations

import argparse
import os
import sys
import time

from hpcimg import logs, node
from hpcimg import stage as staging
from hpcimg.cache import history
from hpcimg.cache.paths import Layout
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.errors import HpcimgError, NodeError
from hpcimg.fetch.contract import Request
from hpcimg.site import policy
from hpcimg.slurm import ask
from hpcimg.units import format_duration, format_size

HELP = """stage images in this node's cache, as Prolog does

Prints the path of each image when it is complete. Run it as root on a node, for
example to warm the cache before a maintenance ends. A job's user can run it in the
job, if the site has enabled the node's helper; the images then belong to the job."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", nargs="+", metavar="URI", help="a reference, a path or an alias")


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    logs.set_up("stderr", name="stage")
    if _is_anothers(conf.state_path):
        return _ask(args, Layout(conf.cache_path, conf.state_path).socket)
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
        _show(args, results[-1], time.monotonic() - began)
    if args.json:
        output.print_json({"images": results})
    return 0


def _is_anothers(state: str) -> bool:
    """Tell whether a node's state is not ours to change, so that its helper has to be asked."""
    try:
        return os.geteuid() != 0 and os.stat(state).st_uid != os.geteuid()
    except OSError:
        return False


def _ask(args: argparse.Namespace, socket: str) -> int:
    """Have the node's helper stage the images for the job that we are in."""
    results: list[dict[str, object]] = []
    for uri in args.uri:
        began = time.monotonic()
        found = ask.ask(socket, "stage", uri)
        if found is None:
            raise NodeError(
                "this node does not stage images for users",
                why=f"nothing answers at {socket}",
                do="Name the image in the job's comment, or ask the administrators to enable "
                "hpcimg.socket.",
            )
        results.append({"uri": uri, **found})
        _show(args, results[-1], time.monotonic() - began)
    if args.json:
        output.print_json({"images": results})
    return 0


def _show(args: argparse.Namespace, image: dict[str, object], took_s: float) -> None:
    if args.json:
        return
    size, took = format_size(float(str(image["bytes"]))), format_duration(took_s)
    print(f"{image['uri']}: {image['how']}, {size} in {took}", file=sys.stderr)
    print(image["path"], flush=True)
