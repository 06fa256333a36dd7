"""Time the conversion of an image of two large gzip layers, with each library that unpacks them.

No server and no cache: what a worker does. The processor time is what counts on a busy machine.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

from bench import docker
from bench.warm_hit import Case, measure, show
from hpcimg.convert import layers
from hpcimg.convert.image import Work, convert
from tests.parts.layers import missing

LIBRARIES = ("zlib", "isal.isal_zlib")


def once(library: str, directory: Path, paths: list[Path]) -> None:
    """Convert layers in this process."""
    layers.gzip = importlib.import_module(library)
    files = [os.open(path, os.O_RDONLY) for path in paths]
    output = os.open(directory / "image", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    work = Work(
        "docker://bench", "{}", tuple(path.stat().st_size for path in paths), files.__getitem__,
        output, str(directory), "sif", "zstd:1", 0,
    )  # fmt: skip
    convert(work, lambda *_: None)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.convert", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        library, directory, *paths = options.once
        once(library, Path(directory), [Path(path) for path in paths])
        return 0
    if missing():
        print(missing())
        return 1
    docker.KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=docker.KEPT) as directory:
        paths = []
        for name in ("large", "small"):
            paths.append(Path(directory, name))
            paths[-1].write_bytes(docker.layer(name, 0).data)
        here = [sys.executable, "-m", "bench.convert", "--once"]
        environment = dict(os.environ)
        cases = [
            Case(library, [*here, library, directory, *map(str, paths)], lambda: environment)
            for library in LIBRARIES
        ]
        rows = measure(cases, options.rounds)
        show(rows, rows[0].name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
