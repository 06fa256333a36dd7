"""Time the hooks: whole processes, from spawn to exit.

What is compared runs in turn, A B A B, in one run on one machine, so that a
machine that is slower for a while is slower for all. The table shows medians
of time and of processor time; ratios are what can be compared between machines,
and those of processor time also where other programs run.

The hooks are those of an installed tree, if one is given; a checkout is slower, by its
editable installation and, on some machines, by the Python that it was made with.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.parts import images
from tests.parts.node import ROOT, Node

TARGET = 1.4  # of the processor time of a warm hit
ROUNDS = 150
COLD_ROUNDS = 9
LARGE_ROUNDS = 5
MIB = 1 << 20


class Case(NamedTuple):
    """A process to time. `prepare` runs before each time, untimed, and returns its environment."""

    name: str
    argv: Sequence[str]
    prepare: Callable[[], dict[str, str]]


class Row(NamedTuple):
    """A line of the table: medians, and their ratios to those of the first case."""

    name: str
    median_ms: float
    ratio: float
    cpu_ms: float
    cpu_ratio: float


class Took(NamedTuple):
    """The time and the processor time of one run, in seconds."""

    wall_s: float
    cpu_s: float


def measure(cases: Sequence[Case], rounds: int) -> list[Row]:
    """Time the cases in turn, after one round that does not count."""
    times: dict[str, list[Took]] = {case.name: [] for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            took = timed(case.argv, case.prepare())
            if number:
                times[case.name].append(took)
    medians = {
        name: Took(*map(statistics.median, zip(*taken, strict=True)))
        for name, taken in times.items()
    }
    base = medians[cases[0].name]
    return [
        Row(name, took.wall_s * 1000, took.wall_s / base.wall_s,
            took.cpu_s * 1000, took.cpu_s / base.cpu_s)
        for name, took in medians.items()
    ]  # fmt: skip


def run(argv: Sequence[str], environment: dict[str, str]) -> float:
    """Run a program, which must exit with 0; return the seconds that it took."""
    return timed(argv, environment).wall_s


def timed(argv: Sequence[str], environment: dict[str, str]) -> Took:
    """Run a program, which must exit with 0, and time it and what it waits for."""
    silence = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=silence)
    _, status, used = os.wait4(pid, 0)
    took_s = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(argv)} ended with status {status}")
    return Took(took_s, used.ru_utime + used.ru_stime)


def hooks_python(tree: Path = ROOT) -> str:
    """Return the interpreter that the hooks of a tree use."""
    own = tree / ".venv" / "bin" / "python"
    return str(own) if os.access(own, os.X_OK) else "/usr/bin/python3"


class Bench:
    """A node of its own, a web server at `url`, a file at `mounted`, and the cases.

    The hooks are those of `tree`.
    """

    def __init__(self, directory: Path, state: Path, url: str, mounted: Path, tree: Path) -> None:
        self.tree = tree
        self.prolog = [str(tree / "prolog" / "hpcimg-prolog")]
        self.node = Node(directory)
        self.node.state = state / "state"
        self.node.configure()
        self.directory = directory
        self.url = url
        self.mounted = mounted
        self._jobs = 1

    def none(self) -> list[Row]:
        """Time the hooks of a job without an image."""
        prolog, epilog = self.prolog, [str(self.tree / "epilog" / "hpcimg-epilog")]
        cases = [
            Case("sh -c :", ["/bin/sh", "-c", ":"], dict),
            Case("prolog, no comment", prolog, lambda: self._environment(None)),
            Case("prolog, comment without image", prolog, lambda: self._environment("a note")),
            Case("prolog, the same with a slash", prolog, lambda: self._environment("a/b")),
            Case("prolog, with a value and a slash", prolog, lambda: self._environment("a=b/c")),
            Case("epilog, no image", epilog, lambda: self._environment(None)),
        ]
        return measure(cases, ROUNDS)

    def warm(self) -> list[Row]:
        """Time the hooks of a job whose image is cached."""
        hot = f"container:{self.url}/small.sif"
        mounted = f"container:{self.mounted}"
        staged = self.node.stage(self._jobs, f"{hot} {mounted}")
        if staged.code:
            raise SystemExit(staged.printed)
        first = self._jobs
        prolog, python = self.prolog, hooks_python(self.tree)
        task_prolog = [str(self.tree / "prolog" / "hpcimg-task-prolog")]
        cases = [
            Case("python -I -S -c pass", [python, "-I", "-S", "-c", "pass"], dict),
            Case("prolog, warm hit", prolog, lambda: self._environment(hot)),
            Case("prolog, warm hit, a path", prolog, lambda: self._environment(mounted)),
            Case("task prolog", task_prolog, lambda: self.node.environment(first)),
        ]
        rows = measure(cases, ROUNDS)
        sources = {
            self.node.record(job)["images"][0]["source"] for job in self._staged_since(first)
        }
        if sources != {"hit"}:
            raise SystemExit(f"not all were hits: {sources}")
        return rows

    def cold(self, name: str, rounds: int) -> list[Row]:
        """Time a fetch next to what an administrator would do by hand."""
        url = f"{self.url}/{name}"
        path = self.directory / "by-hand"
        by_hand = f"curl -sSf -o '{path}' '{url}' && sync '{path}'"
        cases = [Case(f"prolog, cold, {name}", self.prolog, lambda: self._cold(f"container:{url}"))]
        if shutil.which("curl"):
            cases.insert(
                0, Case(f"curl and sync, {name}", ["/bin/sh", "-c", by_hand], self._no_file)
            )
        return measure(cases, rounds)

    def _environment(self, comment: str | None) -> dict[str, str]:
        self._jobs += 1
        return self.node.environment(self._jobs, comment)

    def _staged_since(self, first: int) -> list[str]:
        return [job.name for job in (self.node.state / "jobs").iterdir() if int(job.name) > first]

    def _cold(self, comment: str) -> dict[str, str]:
        shutil.rmtree(self.node.cache, ignore_errors=True)
        self.node.reboot()
        os.sync()
        return self._environment(comment)

    def _no_file(self) -> dict[str, str]:
        (self.directory / "by-hand").unlink(missing_ok=True)
        os.sync()
        return {"PATH": os.environ["PATH"]}


@contextmanager
def web_server(directory: Path) -> Iterator[str]:
    """Serve a directory from a separate process; yield its address."""
    argv = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        [*argv, "--directory", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout
            words = server.stdout.readline().split()
            yield f"http://127.0.0.1:{words[words.index('port') + 1]}"
        finally:
            server.kill()


def show(rows: list[Row], of: str) -> None:
    print(f"\n{'':34}{'median':>12}{'ratio':>8}{'processor':>12}{'ratio':>8}  (to {of})")
    for row in rows:
        time_ms = f"{row.median_ms:9.1f} ms{row.ratio:8.2f}"
        print(f"{row.name:34}{time_ms}{row.cpu_ms:9.1f} ms{row.cpu_ratio:8.2f}")


def main() -> int:
    """Measure and print; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.warm_hit", description=__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT, help="where hpcimg is installed")
    tree = parser.parse_args().tree.resolve()
    if missing := images.missing():
        print(missing)
        return 1
    # The state is on a tmpfs, as on a node.
    tmpfs = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="hpcimg-bench-") as on_disk,
        tempfile.TemporaryDirectory(prefix="hpcimg-bench-", dir=tmpfs) as in_memory,
    ):
        directory = Path(on_disk)
        directory.chmod(0o755)  # the account that checks a path must be able to enter it
        served = directory / "served"
        served.mkdir()
        images.make_sif(served / "small.sif", {"n": b"x"}, size_bytes=MIB)
        images.make_sif(served / "large.sif", {"n": b"x"}, size_bytes=200 * MIB)
        with web_server(served) as url:
            bench = Bench(directory, Path(in_memory), url, served / "small.sif", tree)
            none = bench.none()
            show(none, none[0].name)
            rows = bench.warm()
            show(rows, rows[0].name)
            met = rows[1].cpu_ratio <= TARGET
            print(f"the target for a warm hit is {TARGET}: {'met' if met else 'missed'}")
            small = bench.cold("small.sif", COLD_ROUNDS)
            show(small, small[0].name)
            large = bench.cold("large.sif", LARGE_ROUNDS)
            show(large, large[0].name)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
