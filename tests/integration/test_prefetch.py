"""hpcimg prefetch: images are staged before a job requests them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.integration.checks import staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.sitetier import Cluster
from tests.parts.webfaults import Status
from tests.parts.webserver import WebServer

MIB = 1 << 20


def test_an_image_without_a_lease(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    done = node.hpcimg("prefetch", url)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{url}: fetched, " in done.stderr
    assert node.leases() == set()
    [image] = node.hpcimg_json("prefetch", url)["images"]
    assert (image["uri"], image["how"], image["bytes"]) == (url, "hit", len(sif))
    staged(node, 1, f"container:{url}", sif, how="hit")
    assert web.count() == 1


def test_it_goes_on_where_one_fails(node: Node, url: str, sif: bytes) -> None:
    done = node.hpcimg("prefetch", "ubuntu:22.04", f"{url}x", url, "--json")
    assert done.returncode == 10
    found = json.loads(done.stdout)["images"]
    assert [image.get("error") for image in found] == ["BadReference", "NotFound", None]
    staged(node, 1, f"container:{url}", sif, how="hit")


def test_what_no_job_has_used_is_the_first_to_go(
    node: Node, web: WebServer, make_sif: MakeSif
) -> None:
    node.configure("[cache]\nmax_size = 5M\nmin_age = 0\n")
    urls = [web.put(f"/{n}.sif", make_sif(size_bytes=MIB * 3 // 2), etag='"1"') for n in range(5)]

    def job(number: int, url: str) -> None:
        node.stage(number, f"container:{url}")
        node.epilog(number)

    def here() -> list[int]:
        return [n for n, url in enumerate(urls) if node.hpcimg("path", url).returncode == 0]

    job(1, urls[0])
    for _ in range(2):  # to ask for it again is no use of it
        assert node.hpcimg("prefetch", urls[1], urls[2]).returncode == 0
    assert here() == [0, 1, 2]
    job(2, urls[1])
    job(3, urls[3])
    assert here() == [0, 1, 3]
    # One that a job has used is like any other.
    job(4, urls[4])
    assert here() == [1, 3, 4]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose tier it is")
def test_into_the_site_tier(
    tmp_path: Path, shared: Path, web: WebServer, url: str, sif: bytes
) -> None:
    cluster = Cluster(tmp_path, shared, nodes=2)
    first, second = cluster.nodes
    assert first.hpcimg("prefetch", url).returncode == 0
    assert len(cluster.images()) == 1
    [image] = first.hpcimg_json("prefetch", url)["images"]
    assert image["how"] == "there"
    # This node has it, and the tier has lost it.
    cluster.images()[0].unlink()
    assert first.hpcimg("prefetch", url).returncode == 0
    assert len(cluster.images()) == 1
    staged(second, 1, f"container:{url}", sif, how="fetched")
    assert web.count() == 1


@pytest.fixture
def queue(node: Node, tmp_path: Path) -> Path:
    """What squeue prints: lines of START|UID|NODES|COMMENT, an empty file for now."""
    directory = tmp_path / "slurm"
    directory.mkdir()
    said = directory / "queue"
    said.touch()
    squeue = directory / "squeue"
    squeue.write_text(
        f"""#!/bin/sh
for word; do case $word in --format=*) mark=${{word#--format=}}; mark=${{mark%%:*}}:;; esac; done
sed "s/^/$mark/" {said}
"""
    )
    squeue.chmod(0o755)
    node.configure(f"[slurm]\nbin = {directory}\n")
    return said


def test_what_planned_jobs_ask_for(
    node: Node, queue: Path, web: WebServer, url: str, sif: bytes
) -> None:
    soon = int(time.time()) + 60
    node_name = os.uname().nodename.partition(".")[0]
    other = web.url("/other-node.sif")
    queue.write_text(
        f"{soon}|1000|{node_name}|container:{url}\n"
        f"{soon}|1001|{node_name}|container:nonsense container:/no/such.sif\n"
        f"{soon}|1002|elsewhere|container:{other}\n"
        f"N/A|1003||container:{other}\n"
    )
    done = node.hpcimg("prefetch", "--queue", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["images"]
    assert [image.get("how", image.get("error")) for image in found] == [
        "fetched", "BadReference", "NotFound",
    ]  # fmt: skip
    staged(node, 1, f"container:{url}", sif, how="hit")
    assert web.count(path="/other-node.sif") == 0
    assert "failed" not in [event["event"] for event in node.hpcimg_json("history")["events"]]


def test_a_queue_that_cannot_be_read(node: Node, queue: Path) -> None:
    queue.with_name("squeue").write_text("#!/bin/sh\necho down >&2\nexit 1\n")
    done = node.hpcimg("prefetch", "--queue")
    assert done.returncode == 20
    assert "slurmctld cannot be reached: down" in done.stderr


def test_a_server_that_is_down(node: Node, web: WebServer, url: str) -> None:
    web.script("/x.sif", [Status(503, retry_after="600")])
    assert node.hpcimg("prefetch", url).returncode == 20
