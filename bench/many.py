"""What it costs that a cache has many images: listings, Epilog, and a cold image.

Two nodes, one with few images and one with many, take turns. The images are records with files of
some bytes, since nothing here reads them. The table has medians of time and of processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

from bench.warm_hit import Case, measure, show, web_server
from hpcimg.cache import directories, store
from hpcimg.cache.paths import Layout
from tests.parts import images
from tests.parts.node import EPILOG, PROLOG, ROOT, Node

FEW = 10


def fill(node: Node, number: int) -> None:
    """Publish so many images, each used a second before the one that follows."""
    layout = Layout(str(node.cache), str(node.state))
    directories.prepare(layout)
    for each in range(number):
        sha256 = hashlib.sha256(b"%d" % each).hexdigest()
        uris = (f"https://images.example.org/project-{each % 50}/image-{each}.sif",)
        fetched = time.time() - number + each
        entry = store.Entry(f"sha256-{sha256}", "sif", sha256, 1 + each, "amd64", uris, fetched)
        with store.unfinished(layout, "x") as (temp, descriptor):
            os.truncate(descriptor, entry.size_bytes)
            store.publish(layout, entry, temp, descriptor, durable=False)


class Bench:
    """A node with `number` images, and a web server with more of them."""

    def __init__(self, directory: Path, number: int, url: str) -> None:
        directory.mkdir()
        self.node = Node(directory, "[cache]\nmax_images = 1000000\n")
        self.number = number
        self.url = url
        self._jobs = 0
        fill(self.node, number)

    def hpcimg(self, *words: str) -> Case:
        """Time a command."""
        argv = [str(ROOT / "bin" / "hpcimg"), *words]
        environment = {"HPCIMG_CONF": str(self.node.conf), "PATH": os.environ["PATH"]}
        return Case(f"hpcimg {' '.join(words)}, {self.number}", argv, lambda: environment)

    def cold(self) -> Case:
        """Time a Prolog that fetches a small image."""
        return Case(f"prolog, cold, {self.number}", [str(PROLOG)], self._next)

    def epilog(self) -> Case:
        """Time an Epilog after a job that fetched one."""
        return Case(f"epilog, {self.number}", [str(EPILOG)], self._staged)

    def _next(self) -> dict[str, str]:
        self._jobs += 1
        return self.node.environment(
            self._jobs, f"container:{self.url}/{self._jobs % 2}.sif?{self._jobs}"
        )

    def _staged(self) -> dict[str, str]:
        environment = self._next()
        self.node.prolog(self._jobs, environment["SLURM_JOB_COMMENT"])
        return environment


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.many", description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if missing := images.missing():
        print(missing)
        return 1
    with tempfile.TemporaryDirectory(prefix="hpcimg-bench-", dir="/var/tmp") as made:
        served = Path(made) / "served"
        served.mkdir()
        for number in (0, 1):
            images.make_sif(served / f"{number}.sif", {"n": b"%d" % number}, size_bytes=1 << 20)
        with web_server(served) as url:
            few = Bench(Path(made) / "few", FEW, url)
            many = Bench(Path(made) / "many", options.images, url)
            time.sleep(2)  # what has just changed is not indexed
            for make in (
                lambda b: b.hpcimg("ls"), lambda b: b.hpcimg("ls", "--json"),
                lambda b: b.hpcimg("status"), Bench.epilog, Bench.cold,
            ):  # fmt: skip
                rows = measure([make(few), make(many)], options.rounds)
                show(rows, rows[0].name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
