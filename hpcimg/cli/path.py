"""hpcimg path: the path of an image, without using the network."""

from __future__ import annotations

import argparse
import os

from hpcimg import look, node
from hpcimg.cache import store
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry, Ref
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.config.keys import Config
from hpcimg.errors import NotFound
from hpcimg.reference import Reference
from hpcimg.site import policy

HELP = """print the path of an image on this node, without asking any server

The exit code is 12 if it is not in the cache."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="a reference, a path or an alias")


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = Layout(conf.cache_path, conf.state_path)
    wanted, entry = find(conf, layout, args.uri)
    path = store.path_of(layout, entry)
    if args.json:
        output.print_json({"uri": wanted.uri, "path": path, "key": entry.key})
    else:
        print(path)
    return 0


def find(conf: Config, layout: Layout, text: str) -> tuple[Reference, Entry]:
    """Return a reference as it was written, and its image in the cache.

    Raises NotFound if there is none, BadReference, NotAllowed.
    """
    wanted = policy.parse(conf, text)
    for owner in (None, os.getuid()):
        ref = store.load_ref(layout, store.ref_id(wanted.address, owner))
        entry = store.load_entry(layout, ref.key) if ref else None
        if ref and entry and entry.serves(node.verified_by(conf)) and _is_current(wanted, ref):
            return wanted, entry
    raise NotFound(
        f"{wanted.uri} is not in the cache of this node",
        do="The next job that requests it fetches it, and so does `hpcimg stage`.",
    )


def _is_current(wanted: Reference, ref: Ref) -> bool:
    """Tell whether a mounted file is still the one that was copied; others are not checked."""
    try:
        return not wanted.mounted_file or look.of(os.stat(wanted.mounted_file)) == ref.validator
    except OSError:
        return False
