"""Run a part of hpcimg once for each of its changes of the file system, with a fault there."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.parts.node import Node

# Every third change is struck, all of them in a long run (HPCIMG_LONG=1).
_STEP = 1 if os.environ.get("HPCIMG_LONG") else 3
_DRIVER = Path(__file__).with_name("driver.py")


class Struck(NamedTuple):
    """What happened: the fault, the call with its paths, the exit code, what was printed."""

    fault: str
    call: str
    code: int
    output: str


def strike_each(
    node: Node,
    faults: Sequence[str],
    module: str,
    *arguments: str,
    job: int,
    comment: str | None = None,
) -> Iterator[Struck]:
    """Run a part with a fault at its first or third change, at later ones, until it makes no more.

    The faults take turns. Every run finds the node as it is now. The last one, which no
    fault struck, must end well.
    """
    # Hard links: an image that is another file is no hit. What hpcimg changes
    # in place, last uses and events, is not put back.
    saved = node.directory / "saved"
    saved.mkdir()
    for directory in (node.cache, node.state):
        if directory.exists():
            _run("cp", "-al", directory, saved)
    for number, fault in zip(itertools.count(_STEP, _STEP), itertools.cycle(faults), strict=False):
        _run("rm", "-rf", node.cache, node.state)
        _run("cp", "-al", f"{saved}/.", node.directory)
        struck = _strike(node, fault, number, module, *arguments, job=job, comment=comment)
        if not struck.call:
            assert number > 5, "it does not do what this is about"
            assert struck.code == 0, struck.output
            return
        yield struck


def _strike(
    node: Node, fault: str, number: int, *part: str, job: int, comment: str | None
) -> Struck:
    report = node.directory / f"struck-{number}"
    done = subprocess.run(
        [sys.executable, "-I", str(_DRIVER), fault, str(number), str(report), *part],
        env=node.environment(job, comment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    call = report.read_text() if report.exists() else ""
    return Struck(fault, call, done.returncode, done.stdout)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)
