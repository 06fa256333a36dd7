"""A tag that moves while a job's nodes resolve it: all run the same image, or the job fails."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from hpcimg.cache.ensure import ensure
from hpcimg.config import load
from hpcimg.fetch.contract import Request
from hpcimg.node import open_cache
from hpcimg.origin import origins
from hpcimg.reference import parse
from hpcimg.site import services
from hpcimg.tier.client import Tier
from hpcimg.worker.accounts import ROOT
from tests.integration.checks import refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.ociimages import make_layer, push_image
from tests.parts.registry import Registry
from tests.parts.registryclient import auth_file
from tests.parts.sitetier import Cluster
from tests.parts.webserver import WebServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose tier it is")
GAMES = 5


@pytest.fixture
def cluster(tmp_path: Path, shared: Path) -> Cluster:
    made = Cluster(tmp_path, shared, nodes=2)
    for node in made.nodes:
        node.nodes = "n[1-2]"
    return made


def cold(node: Node, job: int, comment: str) -> bytes:
    task = node.stage(job, comment)
    assert task.code == 0, (task.printed, node.log())
    return task.image.read_bytes()


def test_a_node_that_looks_later_runs_what_the_first_one_found(
    cluster: Cluster, web: WebServer, url: str, sif: bytes, make_sif: MakeSif
) -> None:
    first, second = cluster.nodes
    cluster.configure(second, "[stage]\ntag_ttl = 0s\n")  # it asks the server each time
    staged(first, 1, f"container:{url}", sif)
    new = make_sif()
    web.put("/x.sif", new, etag='"2"')
    staged(second, 1, f"container:{url}", sif)
    # The next job gets what the tag stands for by then.
    staged(second, 2, f"container:{url}", new)
    staged(first, 2, f"container:{url}", new)


def test_a_node_whose_cache_knows_better_runs_what_the_first_one_found(
    cluster: Cluster, web: WebServer, url: str, sif: bytes, make_sif: MakeSif
) -> None:
    """Both have the image cached, in different versions."""
    first, second = cluster.nodes
    first.nodes = second.nodes = ""
    cluster.configure(second, "[stage]\ntag_ttl = 0s\n")
    staged(first, 1, f"container:{url}", sif)
    new = make_sif()
    web.put("/x.sif", new, etag='"2"')
    staged(second, 1, f"container:{url}", new)
    cluster.configure(second)
    first.nodes = second.nodes = "n[1-2]"
    staged(second, 2, f"container:{url}", new)
    staged(first, 2, f"container:{url}", new)
    # Alone, each still trusts what it knows.
    first.nodes = ""
    staged(first, 3, f"container:{url}", sif, how="hit")


def test_who_comes_second_with_another_image_gets_that_of_the_first(
    cluster: Cluster, web: WebServer, url: str, sif: bytes, make_sif: MakeSif
) -> None:
    """Both asked before either had proposed its image."""
    keys = []
    for node in cluster.nodes:
        conf = load.load(str(node.conf))
        wanted = Request(parse(url), time.monotonic() + 30, "1", together="cluster.1.0")
        cache = open_cache(conf)
        service = services.find(conf, wanted.reference)
        way, *_ = origins(conf, cache, wanted, service, user=ROOT)
        staged = ensure(cache, wanted, way)
        with closing(Tier(conf, cache, wanted)) as tier:
            agreed = tier.put("agree", staged, shared=True)["record"]
        keys.append((staged.entry.key, agreed["key"]))
        web.put("/x.sif", make_sif(), etag='"2"')
    assert keys[0][0] != keys[1][0]
    assert [agreed for _, agreed in keys] == [keys[0][0]] * 2


def test_an_earlier_image_that_is_not_to_be_had_fails_the_job_rather_than_mixing_two(
    cluster: Cluster, web: WebServer, url: str, sif: bytes, make_sif: MakeSif
) -> None:
    first, second = cluster.nodes
    staged(first, 1, f"container:{url}", sif)
    for image in cluster.images():
        image.unlink()
    web.put("/x.sif", make_sif(), etag='"2"')
    refused(second, 1, f"container:{url}", "Unreachable", "is no longer the image")


@pytest.mark.parametrize("lost", [False, True])
def test_a_tag_of_a_registry_that_moves(cluster: Cluster, registry: Registry, lost: bool) -> None:
    first, second = cluster.nodes
    for node in cluster.nodes:
        cluster.configure(node, f"[registry {registry.host}]\ninsecure = yes\n")
    comment = f"container:docker://{registry.host}/bio/x:1"
    push_image(registry, "bio/x", "1", [make_layer({"etc/motd": b"old"})])
    old = cold(first, 1, comment)
    push_image(registry, "bio/x", "1", [make_layer({"etc/motd": b"new"})])
    if lost:  # then it is fetched by its digest
        for image in cluster.images():
            image.unlink()
    assert key(second, 1, comment) == first.record(1)["images"][0]["key"]
    assert lost or second.task(1).image.read_bytes() == old
    # And one that is alone gets the new one.
    third = cluster.node(
        first.directory.parent / "n3", f"[registry {registry.host}]\ninsecure = yes\n"
    )
    assert third.stage(2, comment).code == 0


def test_a_private_image_is_agreed_upon_and_not_put_there(
    cluster: Cluster, tmp_path: Path, make_sif: MakeSif
) -> None:
    """The site's login is for who asked alone: what is written down is a digest."""
    if missing := Registry.missing():
        pytest.skip(missing)
    with Registry(basic=True) as registry:
        login = tmp_path / "login.json"
        login.write_text(auth_file(registry.host))
        for node in cluster.nodes:
            node.uid = GAMES
            settings = f"[registry {registry.host}]\ninsecure = yes\nauth_file = {login}\n"
            cluster.configure(node, settings)
        comment = f"container:oras://{registry.host}/lab/x:1"
        first, second = cluster.nodes
        old = push_sif(registry, tmp_path, make_sif())
        staged(first, 1, comment, old)
        new = push_sif(registry, tmp_path, make_sif())
        staged(second, 1, comment, old)
        assert cluster.images() == []
        staged(second, 2, comment, new)


def push_sif(registry: Registry, directory: Path, data: bytes) -> bytes:
    path = directory / "pushed.sif"
    path.write_bytes(data)
    registry.push_sif(path, "lab/x", "1")
    return data


def key(node: Node, job: int, comment: str) -> str:
    assert node.stage(job, comment).code == 0, node.log()
    return str(node.record(job)["images"][0]["key"])
