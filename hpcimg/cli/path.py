"""hpcimg path: where an image is, without any network."""

from __future__ import annotations

import argparse
import os

from hpcimg import node
from hpcimg.cache import store
from hpcimg.cache.paths import Layout
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.errors import NotFound
from hpcimg.site import policy

HELP = """print where an image is on this node, without asking any server

Exit code 12 where it is not in the cache."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="a reference, a path or an alias")


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = Layout(conf.cache_path, conf.state_path)
    wanted = policy.parse(conf, args.uri)
    for owner in (None, os.getuid()):
        ref = store.load_ref(layout, store.ref_id(wanted.address, owner))
        entry = store.load_entry(layout, ref.key) if ref else None
        if entry and entry.serves(node.verified_by(conf)):
            path = store.path_of(layout, entry)
            if args.json:
                output.print_json({"uri": wanted.uri, "path": path, "key": entry.key})
            else:
                print(path)
            return 0
    raise NotFound(
        f"{wanted.uri} is not in the cache of this node",
        do="A job that names it brings it, and so does `hpcimg stage`.",
    )
