"""Locks without effect: every job still gets a complete image, though not with one download."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.invariants import check_images, check_no_leftovers, check_staged
from tests.parts.images import make_sif
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

JOBS = range(1, 9)
SIZE = 3 << 20
# Prolog's long way on a system whose flock says yes to everybody, as that of some network
# file systems does.
PROGRAM = """
import fcntl, sys
fcntl.flock = lambda *_: None
sys.path.insert(0, sys.argv.pop(1))
from hpcimg.slurm.prolog import main
sys.exit(main())
"""


def start_prolog(node: Node, job: int, comment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM, str(ROOT)],
        env=node.environment(job, comment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def watch(node: Node, prologs: list[subprocess.Popen[str]]) -> None:
    """Check the cache repeatedly until all Prologs have ended, with 0 and without output."""
    while any(prolog.poll() is None for prolog in prologs):
        check_images(node)
    for prolog in prologs:
        assert prolog.communicate() == ("", None)
        assert prolog.returncode == 0


@pytest.fixture
def versions(tmp_path: Path) -> list[bytes]:
    return [
        make_sif(tmp_path / f"{n}.sif", {"n": b"x"}, size_bytes=SIZE).read_bytes() for n in (1, 2)
    ]


def test_all_download_at_once(node: Node, web: WebServer, versions: list[bytes]) -> None:
    comment = f"container:{web.put('/x.sif', versions[0])}"
    with web.hold("/x.sif", after_bytes=SIZE // 2) as hold:
        prologs = [start_prolog(node, job, comment) for job in JOBS]
        # All are at it: nobody waits for a lock here.
        for _ in JOBS:
            hold.wait_reached()
        assert node.images() == []
        hold.release()
        watch(node, prologs)
    for job in JOBS:
        check_staged(node, job, versions[0])
    assert len(node.images()) == 1
    check_no_leftovers(node)


def test_the_image_changes_meanwhile(node: Node, web: WebServer, versions: list[bytes]) -> None:
    old, new = versions
    comment = f"container:{web.put('/x.sif', old, etag='1')}"
    with web.hold("/x.sif", after_bytes=SIZE // 2) as hold:
        prologs = [start_prolog(node, job, comment) for job in JOBS[:4]]
        for _ in prologs:
            hold.wait_reached()
        web.put("/x.sif", new, etag="2")
        prologs += [start_prolog(node, job, comment) for job in JOBS[4:]]
        for _ in JOBS[4:]:
            hold.wait_reached()
        hold.release()
        watch(node, prologs)
    for job in JOBS[:4]:
        check_staged(node, job, old)
    for job in JOBS[4:]:
        check_staged(node, job, new)
    assert len(node.images()) == 2
    check_no_leftovers(node)
