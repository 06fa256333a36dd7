"""Time docker:// on a node without any cache, next to Apptainer on its own.

The registry is on loopback, and all of it runs on two cores. What is compared runs in turn in one
run, as root; ratios of medians are what can be compared between machines. After it, what a second
version of the image moves, which shares its large layer, by the registry's access log.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.warm_hit import Case, measure, run, show
from tests.parts.daemon import PATH, missing_commands
from tests.parts.node import ROOT, Node
from tests.parts.ociimages import Layer, make_layer, push_image
from tests.parts.registry import Registry

# Layers are made once and kept here.
KEPT = ROOT / ".bench"
CORES = 2
MB = 1_000_000
SIZES = {"large": 314 * MB, "small": 200 * MB, "changed": 20 * MB}
# The content of images: this machine's own programs, libraries and data.
REAL = Path("/usr")
# With --noise seven bits of each byte are random, so that a layer is compressed to 7/8.
SEVEN_BITS = bytes(byte & 0x7F for byte in range(256))
FAST = "-comp zstd -Xcompression-level 1"


@contextmanager
def place() -> Iterator[tuple[Path, Registry]]:
    """Yield a directory that the unprivileged account can enter, and a registry, on CORES cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=KEPT) as directory, Registry() as registry:
        Path(directory).chmod(0o755)
        yield Path(directory), registry


def layer(name: str, file_bytes: int) -> Layer:
    """Return a layer of SIZES, of files of this size; it is the same in every run."""
    return kept_layer(f"{name}-{file_bytes}", lambda: files(name, file_bytes))


def kept_layer(name: str, files: Callable[[], dict[str, bytes]]) -> Layer:
    """Return a layer of files, made once and kept under this name."""
    kept = KEPT / f"{name}.tar.gz"
    note = kept.with_suffix(".about")
    if not note.exists():
        print(f"making {kept}, once", flush=True)
        made = make_layer(files())
        kept.write_bytes(made.data)
        note.write_text(f"{made.media_type} {made.diff_id}")
    media_type, diff_id = note.read_text().split()
    return Layer(media_type, diff_id, kept.read_bytes())


def files(name: str, file_bytes: int) -> dict[str, bytes]:
    """Return the files of a layer: noise in files of this size, or real ones where it is 0."""
    return noise(name, file_bytes) if file_bytes else real(name)


def real(name: str) -> dict[str, bytes]:
    """Return files of this machine, of which no two layers have the same."""
    return share(list(SIZES).index(name), list(SIZES.values()))


def share(number: int, sizes: Sequence[int]) -> dict[str, bytes]:
    """Return this machine's files for one of several layers of these sizes in bytes."""
    found: dict[str, bytes] = {}
    left = sizes[number]
    # Each takes every n-th, so that all have something of everything.
    for path in sorted(REAL.rglob("*"))[number :: len(sizes)]:
        if left > 0 and path.is_file() and not path.is_symlink():
            found[str(path.relative_to("/"))] = path.read_bytes()
            left -= path.stat().st_size
    return found


def noise(name: str, file_bytes: int) -> dict[str, bytes]:
    """Return files of this size, 256 in a directory."""
    source = random.Random(name)
    return {
        f"opt/{name}/{number // 256}/{number}": source.randbytes(file_bytes).translate(SEVEN_BITS)
        for number in range(SIZES[name] // file_bytes)
    }


class Bench:
    """A node, Apptainer's directories beside it, and the registry that both fetch from."""

    def __init__(self, directory: Path, registry: Registry) -> None:
        self.registry = registry
        self.node = Node(directory, f"[registry {registry.host}]\ninsecure = yes\n")
        self.result = directory / "by-apptainer.sif"
        self.directories = {
            "APPTAINER_CACHEDIR": directory / "apptainer-cache",
            "APPTAINER_TMPDIR": directory / "apptainer-tmp",
        }

    def cases(self, uri: str) -> list[Case]:
        """Return the cases: each begins with an empty cache and ends with an image on the disk."""
        fast = ["build", "--disable-cache", "--mksquashfs-args", FAST]
        return [
            Case("hpcimg stage", self._stage(uri), self.nothing_cached),
            Case("apptainer pull", self._pull(uri), self.nothing_cached),
            Case("apptainer build, zstd 1", self._apptainer(fast, uri), self.nothing_cached),
        ]

    def nothing_cached(self) -> dict[str, str]:
        """Empty all caches; return the environment."""
        self.result.unlink(missing_ok=True)
        shutil.rmtree(self.node.cache, ignore_errors=True)
        self.node.reboot()
        for directory in self.directories.values():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        os.sync()
        return self.environment()

    def environment(self) -> dict[str, str]:
        apptainer = {name: str(directory) for name, directory in self.directories.items()}
        return {
            **self.node.environment(1),
            "PATH": PATH,
            "HOME": str(self.node.directory),
            **apptainer,
        }

    def moved(self, first: str, second: str) -> dict[str, list[int]]:
        """Return the bytes of blobs that each case transfers for one image, then for another."""
        ways = {"hpcimg stage": self._stage, "apptainer pull": self._pull}
        found: dict[str, list[int]] = {}
        for name, argv in ways.items():
            self.nothing_cached()
            found[name] = []
            for uri in (first, second):
                before = self._sent()
                run(argv(uri), self.environment())
                found[name].append(self._sent() - before)
        return found

    def _stage(self, uri: str) -> list[str]:
        return [str(ROOT / "bin" / "hpcimg"), "stage", uri]

    def _pull(self, uri: str) -> list[str]:
        return self._apptainer(["pull"], uri)

    def _apptainer(self, command: Sequence[str], uri: str) -> list[str]:
        argv = ["apptainer", "--silent", *command, "--force", "--no-https", str(self.result), uri]
        # An image that hpcimg has staged is flushed to the disk.
        return ["/bin/sh", "-c", f"{shlex.join(argv)} && sync {shlex.quote(str(self.result))}"]

    def _sent(self) -> int:
        return sum(line.sent_bytes for line in self.registry.blob_gets())


def show_moved(found: Mapping[str, Sequence[int]]) -> None:
    """Print what was transferred for two versions of an image."""
    print(f"\n{'moved':34}{'version 1':>12}{'version 2':>12}")
    for name, sizes in found.items():
        print(f"{name:34}" + "".join(f"{size / MB:9.1f} MB" for size in sizes))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.docker", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--noise", action="store_true", help="files of 1 MB that compress to 7/8")
    kinds.add_argument("--small-files", action="store_true", help="the same, of 16 KB")
    options = parser.parse_args()
    if missing := Registry.missing() or missing_commands("apptainer"):
        print(f"{missing}; make bench-docker runs this where there is one")
        return 1
    file_bytes = 16_000 if options.small_files else MB if options.noise else 0
    with place() as (directory, registry):
        large, small, changed = (layer(name, file_bytes) for name in SIZES)
        push_image(registry, "bench", "1", [large, small])
        push_image(registry, "bench", "2", [large, changed])
        first, second = (f"docker://{registry.host}/bench:{tag}" for tag in (1, 2))
        bench = Bench(directory, registry)
        rows = measure(bench.cases(first), options.rounds)
        show(rows, rows[0].name)
        show_moved(bench.moved(first, second))
    return 0


if __name__ == "__main__":
    sys.exit(main())
