"""How long a docker:// image takes beside what others do with it, of those that are installed here.

Each begins with nothing and ends with an image that is on the disk. What the others leave
differs: Apptainer one SIF file, enroot one squashfs file, podman layers that are unpacked into
its store, Charliecloud a directory, and so do skopeo and umoci. All take turns in one run, as root,
on two cores; the ratios are what can be compared between machines. Two images: two large layers of
this system's own files, and twelve layers of 40,000 small files.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import docker
from bench.warm_hit import Case
from tests.parts.daemon import PATH
from tests.parts.ociimages import Layer, make_layer, push_image
from tests.parts.registry import Registry

LAYERS = 12
FILES = 40_000


class Bench(docker.Bench):
    """The cases of `bench.docker`, and other peers in directories of their own."""

    def __init__(self, directory: Path, registry: Registry, secure: Registry) -> None:
        super().__init__(directory, registry)
        self.others = directory / "others"
        self._secure = secure

    def cases(self, uri: str) -> list[Case]:
        """Return the cases that can run here, hpcimg first."""
        hpcimg, *apptainer = super().cases(uri)
        cases = [hpcimg, *(apptainer if found("apptainer") else [])]
        place = shlex.quote(str(self.others))
        name = shlex.quote(uri.removeprefix("docker://"))
        peers = {
            "podman pull": (
                f"podman --root {place}/root --runroot {place}/run"
                f" pull -q --tls-verify=false {name}"
            ),
            "skopeo and umoci": (
                f"skopeo copy -q --src-tls-verify=false docker://{name} oci:{place}/oci:x"
                f" && umoci unpack --image {place}/oci:x {place}/bundle"
            ),
            # It speaks https alone.
            "ch-image pull": (
                f"REQUESTS_CA_BUNDLE={shlex.quote(str(self._secure.certificate))}"
                f" ch-image --storage={place}/ch --no-cache pull"
                f" {self._secure.host}/{uri.rpartition('/')[2]}"
            ),
            "enroot import": (
                f"ENROOT_ALLOW_HTTP=y ENROOT_CACHE_PATH={place}/cache ENROOT_TEMP_PATH={place}"
                f" enroot import -o {place}/x.sqsh docker://{name.replace('/', '#', 1)}"
            ),
        }
        for peer, command in peers.items():
            if found(*peer.removesuffix(" pull").removesuffix(" import").split(" and ")):
                argv = ["/bin/sh", "-c", f"{command} >/dev/null && sync -f {place}"]
                cases.append(Case(peer, argv, self.nothing_cached))
        return cases

    def nothing_cached(self) -> dict[str, str]:
        """Empty all caches; return the environment."""
        shutil.rmtree(self.others, ignore_errors=True)
        self.others.mkdir()
        return super().nothing_cached()


def found(*commands: str) -> bool:
    """Tell whether programs are installed here."""
    return all(shutil.which(command, path=PATH) for command in commands)


def small_files() -> list[Layer]:
    """Return layers of many files, as small as those of Python packages."""
    source = random.Random("small files")
    layers = []
    for number in range(LAYERS):
        files = {
            f"opt/{number}/{n // 100}/{n}.py": source.randbytes(source.randrange(200, 6000))
            .hex()
            .encode()
            for n in range(FILES // LAYERS)
        }
        layers.append(make_layer(files))
    return layers


def compare(cases: list[Case], rounds: int) -> None:
    """Run the cases in turn, after one round that does not count, and print medians."""
    taken: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr)
        for case in cases:
            environment = case.prepare()
            wall_s, cpu_s = run(case.argv, environment)
            if number:
                taken[case.name].append((wall_s, cpu_s))
    medians = {
        name: [statistics.median(each) for each in zip(*times, strict=True)]
        for name, times in taken.items()
    }
    wall_of, cpu_of = medians[cases[0].name]
    print(f"{'':26}{'time':>10}{'ratio':>8}{'processor':>12}{'ratio':>8}")
    for name, (wall_s, cpu_s) in medians.items():
        print(
            f"{name:26}{wall_s:8.2f} s{wall_s / wall_of:8.2f}{cpu_s:10.2f} s{cpu_s / cpu_of:8.2f}"
        )


def run(argv: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a program to its end; return the seconds it took, and those of processor time."""
    before = os.times()
    silence = [(os.POSIX_SPAWN_OPEN, to, os.devnull, os.O_WRONLY, 0) for to in (1, 2)]
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=silence)
    _, status = os.waitpid(pid, 0)
    after = os.times()
    if status:
        raise SystemExit(f"{shlex.join(argv)} ended with status {status}")
    cpu_s = after.children_user + after.children_system
    return after.elapsed - before.elapsed, cpu_s - before.children_user - before.children_system


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", choices=["large", "small"], help="only one of the two")
    options = parser.parse_args()
    if missing := Registry.missing():
        print(missing)
        return 1
    with docker.place() as (directory, registry), Registry(tls=True) as secure:
        large, small = [docker.layer(name, 0) for name in ("large", "small")], small_files()
        for each in (registry, secure):
            push_image(each, "bench", "large", large)
            push_image(each, "bench", "small", small)
        bench = Bench(directory, registry, secure)
        for tag, title in (
            ("large", "two large layers"),
            ("small", f"{LAYERS} layers, {FILES} files"),
        ):
            if options.image in (None, tag):
                print(f"\n{title}", flush=True)
                compare(bench.cases(f"docker://{registry.host}/bench:{tag}"), options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
