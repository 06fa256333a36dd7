"""Prolog and Epilog, killed with SIGKILL before each of their changes of the file system."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.faults.invariants import (
    check_images,
    check_no_jobs,
    check_no_leftovers,
    check_not_misled,
    check_staged,
)
from tests.faults.steps import strike_each
from tests.parts.images import make_sif
from tests.parts.node import Node

# As many runs as there are calls, on a machine that may be busy.
pytestmark = pytest.mark.timeout(900)

# The three changes in a row by which an image goes: every third change is one of them.
EVICTS = re.compile("rmdir .*/leases/|unlink .*/(images|meta)/")
KILL = ["kill"]
KILLED = -signal.SIGKILL
SIZE = 100_000
# Who comes next does not wait for the dead: that would take longer than a run may.
PATIENT = "[stage]\npatience = 5m\n"
# Room for two images of that size and not for three.
SMALL = f"[cache]\nmax_size = 250K\nmin_age = 0s\n{PATIENT}"


def make_images(directory: Path, count: int) -> list[Path]:
    return [make_sif(directory / f"{n}.sif", {"n": b"x"}, size_bytes=SIZE) for n in range(count)]


def test_a_cold_image(node: Node, open_directory: Path) -> None:
    node.configure(PATIENT)
    [image] = make_images(open_directory, 1)
    comment = f"container:{image}"
    for struck in strike_each(node, KILL, "hpcimg.slurm.prolog", job=1, comment=comment):
        assert struck.code == KILLED
        check_images(node)
        check_not_misled(node, 1, image.read_bytes())
        node.prolog(2, comment)
        check_staged(node, 2, image.read_bytes())
        check_images(node)
        check_no_leftovers(node)


def test_a_cold_image_that_others_have_to_make_room_for(node: Node, open_directory: Path) -> None:
    node.configure(SMALL)
    *old, image = make_images(open_directory, 3)
    unused = node.stage(8, f"container:{old[0]}").image
    node.epilog(8)
    used = f"container:{old[1]}"
    assert node.stage(9, used).code == 0
    comment = f"container:{image}"
    evicted = set()
    for struck in strike_each(node, KILL, "hpcimg.slurm.prolog", job=1, comment=comment):
        assert struck.code == KILLED
        evicted.add(not unused.exists())
        check_images(node)
        node.prolog(2, comment)
        check_staged(node, 2, image.read_bytes())
        check_staged(node, 9, old[1].read_bytes())
        check_images(node)
        check_no_leftovers(node)
        assert len(node.images()) == 2
    assert evicted == {False, True}


def test_a_warm_hit(node: Node, open_directory: Path) -> None:
    node.configure(PATIENT)
    [image] = make_images(open_directory, 1)
    comment = f"container:{image}"
    assert node.stage(9, comment).code == 0
    for struck in strike_each(node, KILL, "hpcimg.slurm.warm", "prolog", job=1, comment=comment):
        assert struck.code == KILLED
        check_not_misled(node, 1, image.read_bytes())
        # The same job again, as Slurm runs it where it requeues.
        node.prolog(1, comment)
        check_staged(node, 1, image.read_bytes())
        check_no_leftovers(node)
        for job in (1, 9):
            node.epilog(job)
        check_no_jobs(node)


def test_the_epilog(node: Node, open_directory: Path) -> None:
    node.configure(SMALL.replace("250K", "500K"))
    images = make_images(open_directory, 4)
    comments = [f"container:{image}" for image in images]
    assert node.stage(8, " ".join(comments[:3])).code == 0
    assert node.stage(9, comments[3]).code == 0
    node.configure(SMALL)
    evicted = 0
    for struck in strike_each(node, KILL, "hpcimg.slurm.epilog", job=8):
        assert struck.code == KILLED
        evicted += bool(EVICTS.match(struck.call))
        check_images(node)
        check_staged(node, 9, images[3].read_bytes())
        # Another job wants one of those that may be half evicted.
        node.prolog(2, comments[0])
        check_staged(node, 2, images[0].read_bytes())
        check_staged(node, 9, images[3].read_bytes())
        for job in (8, 2):
            node.epilog(job)
        check_images(node)
        check_no_leftovers(node)
        assert len(node.images()) <= 2
    assert evicted
