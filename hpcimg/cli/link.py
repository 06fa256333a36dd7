"""hpcimg link: images of this node under the names that a workflow manager looks for."""

from __future__ import annotations

import argparse
import os

from hpcimg import managers
from hpcimg.cache import store
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry
from hpcimg.cli import output, path
from hpcimg.config import load as config
from hpcimg.errors import UserError

HELP = """link images of this node's cache under the names that a workflow manager looks for

Without a URI, links all shared images. The links point to paths that are the
same on every node that has the image."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--as",
        dest="manager",
        required=True,
        choices=sorted(managers.MANAGERS),
        help="the workflow manager whose file names to use",
    )
    parser.add_argument(
        "directory", metavar="DIRECTORY", help="where to put the links; created if necessary"
    )
    parser.add_argument("uri", nargs="*", metavar="URI", help="a reference or an alias")


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    layout = Layout(conf.cache_path, conf.state_path)
    found: list[tuple[Entry, tuple[str, ...]]] = []
    for text in args.uri:
        wanted, entry = path.find(conf, layout, text)
        found.append((entry, (text, wanted.uri)))
    if not args.uri:
        found = [(e, e.uris) for e in store.entries(layout) if e.owner is None and not e.is_blob]
    links = {
        f"{args.directory}/{name}": store.path_of(layout, entry)
        for entry, texts in found
        for name in managers.names(args.manager, texts)
    }
    try:
        os.makedirs(args.directory, exist_ok=True)
        for link, target in links.items():
            _link(link, target)
    except OSError as error:
        raise UserError(
            f"{error.filename2 or error.filename} cannot be created",
            why=error.strerror or "",
            do="Name a directory that you can write to, used only for links.",
        ) from None
    if args.json:
        output.print_json({"links": links})
    else:
        for link, target in links.items():
            print(f"{link} -> {target}")
    return 0


def _link(link: str, target: str) -> None:
    """Put a link in place by a rename; anything there that is not a link stays."""
    if os.path.lexists(link) and not os.path.islink(link):
        raise FileExistsError(0, "a file that is not a link has this name", link)
    temp = f"{link[:200]}.{os.getpid()}.new"
    os.symlink(target, temp)
    os.replace(temp, link)
