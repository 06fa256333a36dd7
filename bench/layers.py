"""How long docker:// takes for an image of eight layers, over links of several rates.

On a link that brings layers about as fast as they are converted, most is gained by doing both at
a time; on loopback, only what the processors would leave idle. --beside is another checkout, as of
the commit before, which takes turns with this one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import docker
from bench.peers import compare
from bench.warm_hit import Case
from tests.parts.node import ROOT
from tests.parts.ociimages import Layer, push_image
from tests.parts.registry import Registry
from tests.parts.relay import Throttle

MB = docker.MB
# Of the unpacked layers, the lowest first: a base, packages, applications, settings.
SIZES = [80 * MB, 30 * MB, 10 * MB, 120 * MB, 40 * MB, 60 * MB, 5 * MB, 100_000]


def layers() -> list[Layer]:
    """Return layers of this machine's own files, of which no two have the same."""
    return [
        docker.kept_layer(f"layers-{number}", partial(docker.share, number, SIZES))
        for number in range(len(SIZES))
    ]


class Bench(docker.Bench):
    """The case of `bench.docker` for checkouts of hpcimg, from a registry at any address."""

    def __init__(self, directory: Path, registry: Registry, host: str) -> None:
        super().__init__(directory, registry)
        self.node.configure(f"[registry {host}]\ninsecure = yes\n")
        self.uri = f"docker://{host}/bench:1"

    def stage(self, checkout: Path) -> Case:
        argv = [str(checkout / "bin" / "hpcimg"), "stage", self.uri]
        return Case(str(checkout)[-26:], argv, self.nothing_cached)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.layers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, action="append", default=[], help="a checkout")
    parser.add_argument(
        "--rates", type=int, nargs="*", default=[0, 20, 40], help="in MB/s, 0 is without a limit"
    )
    options = parser.parse_args()
    if missing := Registry.missing():
        print(missing)
        return 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: docker.CORES])
    docker.KEPT.mkdir(exist_ok=True)
    with Registry() as registry:
        made = layers()
        push_image(registry, "bench", "1", made)
        size = sum(len(layer.data) for layer in made) / MB
        for rate in options.rates:
            with (
                tempfile.TemporaryDirectory(prefix="run-", dir=docker.KEPT) as directory,
                ExitStack() as stack,
            ):
                # The unprivileged account fetches in it.
                Path(directory).chmod(0o755)
                host = registry.host
                if rate:
                    target = "127.0.0.1", registry.port
                    host = stack.enter_context(Throttle(target, bytes_per_s=rate * MB)).host
                bench = Bench(Path(directory), registry, host)
                at = f"at {rate} MB/s" if rate else "without a limit"
                print(f"\n{size:.0f} MB {at}", flush=True)
                compare([bench.stage(each) for each in (ROOT, *options.beside)], options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
