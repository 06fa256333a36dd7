"""hpcimg prefetch: stage images before a job needs them."""

from __future__ import annotations

import argparse
import logging
import time

from hpcimg import logs, node, prefetch, schemes
from hpcimg.cache import history
from hpcimg.cache.policy import Cache
from hpcimg.cli import output
from hpcimg.config import files as conffiles
from hpcimg.config import load as config
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError, NodeError
from hpcimg.fetch.contract import Request
from hpcimg.prefetch import Brought
from hpcimg.reference import Reference, told
from hpcimg.site import policy
from hpcimg.slurm import planned, query
from hpcimg.units import format_duration, format_size

log = logging.getLogger(__name__)
HELP = """stage images before a job needs them

Stages them in the site tier, if there is one, and in this node's cache. Private images
are left to their users' jobs. Images that no job has used are the first to be evicted.
Continues if an image fails; the exit code is that of the first failure. With --queue,
stages the images of pending jobs that Slurm plans to start soon, without a site tier
only those planned on this node; then failures of users' images are only logged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", nargs="*", metavar="URI", help="a reference, a path or an alias")
    parser.add_argument(
        "--queue", action="store_true", help="the images of pending jobs, in order of start"
    )


def run(args: argparse.Namespace) -> int:
    if bool(args.uri) == args.queue:
        args.parser.error("name images, or write --queue")
    conf = config.load()
    logs.set_up(conf.log_to if args.queue else "stderr", name="prefetch")
    texts = _in_queue(conf) if args.queue else args.uri
    cache = node.open_cache(conf)
    until = time.monotonic() + conf.deadline_s
    brought: list[Brought] = []
    results: list[dict[str, object]] = []
    code = 0
    try:
        for text in texts:
            began, shown = time.monotonic(), told(text)
            # Those of the queue have the time of one job together: the timer comes again.
            deadline = until if args.queue else began + conf.deadline_s
            if began > deadline:
                log.warning("no time is left for %s and what comes after it", shown)
                break
            try:
                wanted = policy.parse(conf, text)
                if args.queue and conf.site_path and schemes.of(wanted.scheme).mounted:
                    continue  # it is on all nodes
                brought.append(_bring(conf, cache, wanted, text, deadline, queue=args.queue))
            except HpcimgError as error:
                if args.queue and isinstance(error, NodeError):
                    raise
                code = code or error.exit_code
                results.append({"uri": shown, **output.error_fields(error)})
                log.warning("%s: %s", shown, error)
                if not args.queue:  # a job gets the error of its image itself
                    took_s = time.monotonic() - began
                    history.record_failure(cache.layout, error, job="", uri=shown, took_s=took_s)
                continue
            how, entry, _ = brought[-1]
            size = entry.size_bytes if entry else None
            key = entry.key if entry else None
            results.append({"uri": shown, "key": key, "how": how, "bytes": size})
            took = format_duration(time.monotonic() - began)
            what = "" if size is None else f", {format_size(size)}"
            log.info("%s: %s%s in %s", shown, how, what, took)
    finally:
        for each in brought:
            prefetch.leave(cache, each)
    if args.json:
        output.print_json({"images": results})
    return 0 if args.queue else code


def _in_queue(conf: Config) -> list[str]:
    """Return what pending jobs ask for. Raises Unreachable, MissingTool."""
    query.look_in(conf.slurm_bin)
    limits = planned.Limits(conf.prefetch_within_s, conf.prefetch_per_user, conf.prefetch_images)
    here = "" if conf.site_path else conffiles.node_name()
    return planned.choose(query.open_slurm().planned(), limits, now=time.time(), node=here)


def _bring(
    conf: Config, cache: Cache, wanted: Reference, text: str, deadline: float, *, queue: bool
) -> Brought:
    with output.Meter() as meter:
        progress = meter.show if not queue else lambda *_: None
        request = Request(wanted, deadline, progress=progress, text=text)
        return prefetch.bring(conf, cache, request, anew=not queue)
