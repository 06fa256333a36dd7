"""A hostile user on the same node: what another user's jobs notice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hpcimg.cache import bounds
from tests.faults.invariants import check_images, check_no_leftovers, check_staged
from tests.integration.checks import finish, staged
from tests.integration.conftest import MakeSif, Start
from tests.parts.daemon import wait_until
from tests.parts.node import Node
from tests.parts.webregistry import path_of_blob, put_sif
from tests.parts.webserver import WebServer

MIB = 1 << 20
PATIENCE_S = 2


@pytest.fixture
def registry(node: Node, web: WebServer) -> WebServer:
    """A registry of both, at which the hostile user has a repository."""
    settings = f"[registry 127.0.0.1:{web.port}]\ninsecure = yes\n"
    node.configure(f"{settings}[stage]\npatience = {PATIENCE_S}s\n")
    return web


def test_a_registry_that_names_my_digest_and_sends_nothing(
    start: Start, node: Node, registry: WebServer, sif: bytes
) -> None:
    """All my jobs get the image within patience, by one download."""
    theirs, mine = (put_sif(registry, name, sif) for name in ("evil/x", "lab/x"))
    with registry.hold(path_of_blob("evil/x", sif), after_bytes=4) as hold:
        hostile = start(node, 1, theirs)
        hold.wait_reached()
        began = time.monotonic()
        jobs = {job: start(node, job, mine) for job in (2, 3, 4)}
        for job, process in jobs.items():
            finish(process)
            check_staged(node, job, sif)
        assert time.monotonic() - began < 3 * (PATIENCE_S + 1) + 20
        assert hostile.poll() is None
        hold.release()
        finish(hostile)
    assert registry.count(path=path_of_blob("lab/x", sif)) == 1
    assert "stops waiting for" in node.log()
    assert " job 1 is " in node.log()
    check_images(node)
    check_no_leftovers(node)


def test_a_length_that_is_only_announced_evicts_nothing(
    start: Start, node: Node, registry: WebServer, make_sif: MakeSif
) -> None:
    node.configure((node.directory / "conf.d/test.conf").read_text() + "[cache]\nmax_size = 10M\n")
    kept = []
    for job in (1, 2, 3):
        data = make_sif(size_bytes=2 * MIB)
        comment = put_sif(registry, f"lab/{job}", data)
        kept.append((comment, data))
        staged(node, job, comment, data)
        node.epilog(job)
    evil = make_sif(size_bytes=MIB // 2)
    theirs = put_sif(registry, "evil/x", evil, size_bytes=9 * MIB)
    with registry.hold(path_of_blob("evil/x", evil), after_bytes=4) as hold:
        hostile = start(node, 4, theirs)
        hold.wait_reached()
        wait_until(
            lambda: any(work["total"] for work in node.hpcimg_json("status")["staging"]),
            what="what is announced",
        )
        for job, (comment, data) in enumerate(kept, start=5):
            staged_now = node.stage(job, comment)
            assert staged_now.image.read_bytes() == data
            assert node.record(job)["images"][0]["source"] == "hit"
        hold.release()
        finish(hostile)
    assert node.task(4).code == 1
    assert node.hpcimg_json("status")["counts"].get("evict", 0) == 0


def test_what_a_killed_run_left_is_not_paid_for_by_the_next_job(
    node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    """A hundred thousand files, and directories deeper than any path may be."""
    staged(node, 1, f"container:{url}", sif)
    left = node.cache / "work" / "0-1-1.left"
    left.mkdir()
    for directory in range(20):
        (left / str(directory)).mkdir()
        for file in range(5000):
            os.close(os.open(f"{left}/{directory}/{file}", os.O_CREAT | os.O_WRONLY))
    here = os.open(left, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    other = web.put("/other.sif", sif + b"\0" * 4096)
    began = time.monotonic()
    node.prolog(2, f"container:{other}")
    assert node.task(2).code == 0
    assert time.monotonic() - began < 15
    assert node.leftovers() == []
    trash = node.cache / "trash"
    wait_until(lambda: not any(trash.iterdir()), timeout_s=100, what="an empty trash")


def test_ten_thousand_references(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    """What they leave behind is limited, and does not slow down the next job."""
    staged(node, 1, f"container:{url}", sif)
    private = {"refs": node.cache / "refs", "failures": node.state / "failures"}
    for directory in private.values():
        for number in range(10_000):
            (directory / f"u1000-{number}.json").touch()
    for number in range(10_000):
        (node.cache / "locks" / f"{number}.lock").touch()
    began = time.monotonic()
    node.prolog(2, f"container:{web.url('/no-such.sif')}")
    assert node.task(2).code == 1
    assert time.monotonic() - began < 15
    for directory in private.values():
        assert len(list(directory.iterdir())) < bounds.PRIVATE + 10
    assert len(list((node.cache / "locks").iterdir())) < bounds.LOCKS
    staged(node, 3, f"container:{url}", sif, how="hit")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_long_comment_fills_no_tmpfs(node: Node, url: str) -> None:
    words = [f"container:{url}?{number}={'x' * 3000}" for number in range(32)]
    node.prolog(1, " ".join(words))
    assert node.task(1).code == 1
    written = sum(path.stat().st_size for path in Path(node.state).rglob("*") if path.is_file())
    assert written < 200_000
