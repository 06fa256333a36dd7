"""Measure the cost of many jobs that start on a node at once and request the same new image.

A server on loopback takes its time to send the image. For each number of jobs: how long until
all have it, the processor time of their Prologs, and the memory that these have while they
wait, each page shared among those who have it. `--beside` names another checkout, which takes
turns.

Beside that, the least that so many hooks can take: as many shells at once, each of which runs a
Python that does nothing. While these start, so does the download, on the same processors.
"""

from __future__ import annotations

import argparse
import http.server
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from bench.warm_hit import MIB, hooks_python
from tests.parts import images
from tests.parts.node import ROOT, Node

SIZE = 32 * MIB
STEPS = 64
_BARE = "(sh and Python, nothing else)"


class Server(http.server.BaseHTTPRequestHandler):
    """Sends one file within `seconds`; sets `late` shortly before its end."""

    protocol_version = "HTTP/1.1"
    data = b""
    seconds = 4.0
    late = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        began = time.monotonic()
        for step in range(STEPS):
            self.wfile.write(self.data[step * len(self.data) // STEPS :][: len(self.data) // STEPS])
            time.sleep(max(0.0, began + self.seconds * (step + 1) / STEPS - time.monotonic()))
            if step == STEPS * 3 // 4:
                self.late.set()

    def log_message(self, *_: object) -> None:
        pass


class Taken(NamedTuple):
    """Seconds until all were done, seconds of processor time, and bytes of memory."""

    wall_s: float
    cpu_s: float
    memory_bytes: int


def once(tree: Path, jobs: int, url: str) -> Taken:
    """Run this many Prologs of a checkout at once, on a node without any cache."""
    tmpfs = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="hpcimg-bench-", dir="/var/tmp") as on_disk,
        tempfile.TemporaryDirectory(prefix="hpcimg-bench-", dir=tmpfs) as in_memory,
    ):
        directory = Path(on_disk)
        directory.chmod(0o755)
        node = Node(directory)
        node.state = Path(in_memory) / "state"
        node.configure()
        hook = str(tree / "prolog" / "hpcimg-prolog")
        Server.late.clear()
        before, began = os.times(), time.monotonic()
        pids = [
            os.posix_spawn(hook, [hook], node.environment(job, f"container:{url}"), setpgroup=0)
            for job in range(1, jobs + 1)
        ]
        Server.late.wait(60)
        held = sum(memory(pid) for pid in pids)
        for pid in pids:
            os.waitpid(pid, 0)
        taken = _taken(before, began, held)
        states = {node.record(job)["state"] for job in range(1, jobs + 1)}
        if states != {"ready"}:
            raise SystemExit(f"not all were ready: {states}")
    return taken


def bare(jobs: int) -> Taken:
    """Run so many shells at once, each with a Python that does nothing."""
    argv = ["/bin/sh", "-c", '"$0" -I -S -c pass; exit 0', hooks_python()]
    before, began = os.times(), time.monotonic()
    for pid in [os.posix_spawn(argv[0], argv, {}) for _ in range(jobs)]:
        os.waitpid(pid, 0)
    return _taken(before, began, 0)


def _taken(before: os.times_result, began: float, memory_bytes: int) -> Taken:
    wall_s, after = time.monotonic() - began, os.times()
    cpu_s = after.children_user + after.children_system
    return Taken(wall_s, cpu_s - before.children_user - before.children_system, memory_bytes)


def memory(pid: int) -> int:
    """Return the memory of a process and its children in bytes (proportional set size)."""
    size = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                size += int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return size + sum(memory(int(child)) for child in children)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.waiting", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 64, 192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long the server sends")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    options = parser.parse_args()
    if missing := images.missing():
        print(missing)
        return 1
    trees = [ROOT, options.beside.resolve()] if options.beside else [ROOT]
    Server.seconds = options.seconds
    with tempfile.TemporaryDirectory() as made:
        sif = images.make_sif(Path(made) / "x.sif", {"n": b"x"}, size_bytes=SIZE)
        Server.data = sif.read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/x.sif"
    taken: dict[tuple[int, str], list[Taken]] = {}
    for _ in range(options.rounds):
        for jobs in options.jobs:
            taken.setdefault((jobs, _BARE), []).append(bare(jobs))
            for tree in trees:
                taken.setdefault((jobs, str(tree)), []).append(once(tree, jobs, url))
    server.shutdown()
    print(f"\n{'jobs':>4} {'checkout':32}{'until all have it':>19}{'processor':>12}{'memory':>11}")
    for (jobs, what), found in sorted(taken.items()):
        wall_s, cpu_s, memory_bytes = (statistics.median(each) for each in zip(*found, strict=True))
        figures = f"{wall_s:17.2f} s{cpu_s:10.2f} s{memory_bytes / MIB:7.0f} MiB"
        print(f"{jobs:4} {what[-32:]:32}{figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
