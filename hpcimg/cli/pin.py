"""hpcimg pin: keep images on this node."""

from __future__ import annotations

import argparse
import os
import pwd
import time

from hpcimg import node
from hpcimg.cache import pins, store
from hpcimg.cli import output, target
from hpcimg.config import load as config
from hpcimg.errors import NotFound
from hpcimg.locks import held

HELP = """keep images on this node until they are unpinned

A pinned image is never evicted, and `rm` leaves it alone. A reference selects
the image that it currently refers to: if a tag moves, the pinned image stays."""
_WAIT_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="+", metavar="URI|KEY", help=target.HELP)


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = node.open_cache(conf).layout
    made = []
    for text in args.image:
        key = target.find(conf, layout, text).key
        deadline = time.monotonic() + _WAIT_S
        with held(layout.lock(key), deadline=deadline):
            if store.load_entry(layout, key) is None:
                raise NotFound(f"{key} is not complete on this node", do="Stage it first.")
            pin = pins.add(layout, key, by=_who())
        made.append(pin._asdict())
        if not args.json:
            print(f"{key}: pinned by {pin.by}")
    if args.json:
        output.print_json({"pinned": made})
    return 0


def _who() -> str:
    """Return the person's account: root's own name says little."""
    uid = os.environ.get("SUDO_UID", "")
    try:
        return pwd.getpwuid(int(uid) if uid.isdecimal() else os.getuid()).pw_name
    except (KeyError, OverflowError):
        return f"uid {uid or os.getuid()}"
