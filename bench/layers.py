"""How long docker:// takes for an image of eight layers, over links of several rates.

On a link that brings layers about as fast as they are converted, most is gained by doing both at
a time; on loopback, only what the processors would leave idle. --beside is another checkout, as of
the commit before, which takes turns with this one. As root: the link is the loopback of a network
namespace.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench import docker
from bench.peers import compare
from bench.warm_hit import Case
from tests.parts.daemon import missing_commands
from tests.parts.node import ROOT
from tests.parts.ociimages import Layer, push_image
from tests.parts.registry import Registry

MB = docker.MB
# Of the unpacked layers, the lowest first: a base, packages, applications, settings.
SIZES = [80 * MB, 30 * MB, 10 * MB, 120 * MB, 40 * MB, 60 * MB, 5 * MB, 100_000]


def layers() -> list[Layer]:
    """Return layers of this machine's own files, of which no two have the same."""
    return [
        docker.kept_layer(f"layers-{number}", partial(docker.share, number, SIZES))
        for number in range(len(SIZES))
    ]


def limit(rate: int) -> None:
    """Let this namespace's loopback carry so many MB/s, without a limit if that is 0."""
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=False, capture_output=True)
    if rate:
        shape = f"tbf rate {8 * rate}mbit burst 256k latency 400ms"
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", *shape.split()], check=True)


def case(bench: docker.Bench, checkout: Path) -> Case:
    """Return the staging of the image by a checkout of hpcimg."""
    argv = [str(checkout / "bin" / "hpcimg"), "stage", f"docker://{bench.registry.host}/bench:1"]
    return Case(str(checkout)[-26:], argv, bench.nothing_cached)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.layers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, action="append", default=[], help="a checkout")
    parser.add_argument(
        "--rates", type=int, nargs="*", default=[0, 20, 40], help="in MB/s, 0 is without a limit"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if missing := Registry.missing() or missing_commands("ip", "tc", "unshare"):
        print(missing)
        return 1
    if not options.inside:
        argv = ["unshare", "--net", sys.executable, "-m", "bench.layers", "--inside"]
        os.execvp(argv[0], [*argv, *sys.argv[1:]])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with docker.place() as (directory, registry):
        made = layers()
        push_image(registry, "bench", "1", made)
        bench = docker.Bench(directory, registry)
        for rate in options.rates:
            limit(rate)
            at = f"at {rate} MB/s" if rate else "without a limit"
            print(f"\n{sum(len(layer.data) for layer in made) / MB:.0f} MB {at}", flush=True)
            compare([case(bench, each) for each in (ROOT, *options.beside)], options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
