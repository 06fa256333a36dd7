"""Each system call of a staging that changes the file system fails once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.faults.invariants import check_images, check_no_leftovers, check_staged
from tests.faults.steps import strike_each
from tests.parts.images import make_sif
from tests.parts.node import Node

# As many runs as there are calls, on a machine that may be busy.
pytestmark = pytest.mark.timeout(900)

# The disk is full, which passes; the disk is broken, which somebody has to see to.
CLASSES = {"ENOSPC": "transient", "EIO": "node", "EDQUOT": "transient", "EROFS": "node"}
FAULTS = list(CLASSES)


@pytest.mark.parametrize("faults", [FAULTS, [*FAULTS[1:], FAULTS[0]]], ids=["full", "broken"])
def test_a_cold_image(faults: list[str], node: Node, open_directory: Path) -> None:
    """At each step, the disk is full in one of the two runs and broken in the other."""
    node.configure("[stage]\npatience = 5m\n")  # longer than the next run may take
    image = make_sif(open_directory / "x.sif", {"n": b"x"}, size_bytes=100_000)
    data = image.read_bytes()
    comment = f"container:{image}"
    failed = 0
    for struck in strike_each(node, faults, "hpcimg.slurm.prolog", job=1, comment=comment):
        assert struck.code == 0, struck
        assert struck.output == ""
        record = node.record(1)
        if record["state"] == "ready":
            check_staged(node, 1, data)
        else:
            failed += 1
            task = node.task(1)
            assert task.code == 1
            assert os.strerror(getattr(errno, struck.fault)) in task.printed
            assert record["class"] == CLASSES[struck.fault], (struck, record)
        check_images(node)
        if not struck.call.startswith("unlink"):
            check_no_leftovers(node)
        node.prolog(2, comment)
        check_staged(node, 2, data)
        check_images(node)
        check_no_leftovers(node)
    assert failed > 5
