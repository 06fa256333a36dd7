"""Sixty-four jobs begin on one node at the same moment and name the same new image."""

from __future__ import annotations

from tests.integration.checks import finish, got, wait_for_log
from tests.integration.conftest import MakeSif, Start
from tests.parts.node import Node
from tests.parts.webserver import WebServer

JOBS = range(1, 65)


def test_one_get(start: Start, node: Node, web: WebServer, make_sif: MakeSif) -> None:
    sif = make_sif(size_bytes=3_000_000)
    url = web.put("/x.sif", sif)
    with web.hold("/x.sif", after_bytes=1_000_000) as hold:
        prologs = [start(node, job, f"container:{url}") for job in JOBS]
        hold.wait_reached()
        # One fetches; it goes on when all others have come to wait for it.
        waiting = [f"job {job} waits for {url}" for job in JOBS]
        wait_for_log(node, *waiting, but=1, timeout_s=90)
        hold.release()
        for prolog in prologs:
            finish(prolog)
    for job in JOBS:
        got(node, job, node.task(job), sif)
    ways = [node.record(job)["images"][0]["source"] for job in JOBS]
    assert (ways.count("fetched"), ways.count("waited")) == (1, 63)
    assert web.count() == 1
    assert len(node.images()) == 1
    assert len(node.leases()) == 64
