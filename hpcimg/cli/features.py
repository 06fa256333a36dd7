"""hpcimg features: set node features for the images that nodes have had."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time

from hpcimg import atomic, logs
from hpcimg.cli import output
from hpcimg.config import load as config
from hpcimg.errors import explained
from hpcimg.slurm import features, query
from hpcimg.slurm.features import Seen, Update

HELP = """tell Slurm which nodes have had which images, as node features

Run it on one host, as root or SlurmUser. If job_submit.lua is set up for it, jobs then
prefer such nodes. Calls squeue and scontrol once, for all nodes, and sets what has
changed. Other features are left alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be set, and change nothing"
    )
    parser.add_argument(
        "--clear", action="store_true", help="remove hpcimg's features from all nodes"
    )


def run(args: argparse.Namespace) -> int:
    conf = config.load()
    logs.set_up("stderr", name="features")
    query.look_in(conf.slurm_bin)
    path = f"{conf.state_path}/features.json"
    seen: Seen = {}
    if not args.clear:
        seen = features.look(_load(path), query.running(), now=time.time())
    nodes = features.nodes_in(query.scontrol("--oneliner", "show", "node"))
    changes = features.updates(nodes, seen)
    if not args.dry_run:
        for update in changes:
            _set(update)
        with explained():
            os.makedirs(conf.state_path, exist_ok=True)
            atomic.write_file(path, json.dumps(seen), mode=0o600)
    if args.json:
        output.print_json({"updates": [update._asdict() for update in changes]})
    else:
        for update in changes:
            print(f"{','.join(update.nodes)}: {','.join(update.active) or '(none)'}")
    return 0


def _load(path: str) -> Seen:
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        return {
            str(node): {str(name): float(at) for name, at in mine.items()}
            for node, mine in fields.items()
        }
    return {}


def _set(update: Update) -> None:
    query.scontrol(
        "update",
        f"NodeName={','.join(update.nodes)}",
        f"AvailableFeatures={','.join(update.available)}",
        f"ActiveFeatures={','.join(update.active)}",
    )
