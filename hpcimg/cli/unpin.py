"""hpcimg unpin: make pinned images evictable again."""

from __future__ import annotations

import argparse
import time

from hpcimg import node
from hpcimg.cache import pins
from hpcimg.cli import output, target
from hpcimg.config import load as config
from hpcimg.errors import NotFound
from hpcimg.locks import held

HELP = """make pinned images evictable again

Also accepts the key of an image that is gone: its pin would apply if it returned."""
_WAIT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="+", metavar="URI|KEY", help=target.HELP)


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = node.open_cache(conf).layout
    freed = []
    for text in args.image:
        key = text if text in pins.keys(layout) else target.find(conf, layout, text).key
        deadline = time.monotonic() + _WAIT_S
        with held(layout.lock(key), deadline=deadline):
            if not pins.remove(layout, key):
                raise NotFound(f"{key} is not pinned", do="`hpcimg ls` shows what is.")
        freed.append(key)
        if not args.json:
            print(f"{key}: unpinned")
    if args.json:
        output.print_json({"unpinned": freed})
    return 0
