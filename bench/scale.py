"""Time a job of many nodes beside one node alone, in a lab whose origin is the bottleneck.

Run by `make bench-scale`, as root. Each node is a network namespace; its link is four times as
fast as the origin's. What counts is until Prolog ends on each node. The processors of this host do
the work of all nodes, about half a minute where there are two of them: the image has to be large
enough, or the links slow enough, that this does not decide the result.
"""

from __future__ import annotations

import argparse
import sys

from tests.parts.lab import Lab

# All nodes start their Prolog on the few processors of one host, which takes them a while.
_SETTINGS = "[peers]\nuse = yes\nwait = 45s\nnetworks = {network}\nmunge_socket = {munge}\n"
ORIGIN_MAX, MEDIAN_MAX, P99_MAX = 1.05, 1.5, 2.0


def main() -> int:
    """Run the benchmark; return 1 if a figure exceeds its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--megabytes", type=float, default=48)
    parser.add_argument("--origin", type=float, default=2.5, help="Mbit/s; nodes have 4 times that")
    parser.add_argument("--alone", action="store_true", help="without peers, to compare")
    options = parser.parse_args()
    if missing := Lab.missing():
        print(missing)
        return 1
    size = int(options.megabytes * 1e6)
    settings = "[stage]\ndeadline = 3000s\n" if options.alone else _SETTINGS
    with Lab(
        options.nodes, node_rate=4 * options.origin, origin_rate=options.origin, settings=settings
    ) as lab:
        alone = lab.run(1, lab.put(size_bytes=size), lab.nodes[:1], timeout_s=600)
        before = lab.origin_sent()
        sent = [node.sent() for node in lab.nodes]
        run = lab.run(2, lab.put(size_bytes=size), timeout_s=3000)
        origin = (lab.origin_sent() - before) / size
        most = max(n.sent() - s for n, s in zip(lab.nodes, sent, strict=True)) / size
    median, p99 = run.median_s / alone.median_s, run.p99_s / alone.median_s
    print(f"one node alone         {alone.median_s:8.2f} s")
    print(f"{options.nodes:3d} nodes, median      {run.median_s:8.2f} s  {median:5.2f} x")
    print(f"{options.nodes:3d} nodes, p99         {run.p99_s:8.2f} s  {p99:5.2f} x")
    print(f"sent by the origin     {origin:8.2f} images")
    print(f"sent by a node at most {most:8.2f} images")
    return int(not options.alone and (origin > ORIGIN_MAX or median > MEDIAN_MAX or p99 > P99_MAX))


if __name__ == "__main__":
    sys.exit(main())
