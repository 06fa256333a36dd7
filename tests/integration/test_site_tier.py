"""Nodes that share a directory: an image is fetched and converted once for all of them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from hpcimg.config import load
from hpcimg.fetch.contract import Request
from hpcimg.node import open_cache
from hpcimg.reference import parse
from hpcimg.tier import bring as bringing
from tests.integration.checks import finish, got, refused, staged
from tests.integration.conftest import MakeSif, Start
from tests.parts.daemon import wait_until
from tests.parts.node import Node
from tests.parts.ociimages import make_layer, push_image
from tests.parts.registry import Registry
from tests.parts.sitetier import Cluster, events, via
from tests.parts.webfaults import Status, Truncate
from tests.parts.webserver import WebServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose tier it is")
GAMES = 5
MANY = 64 if os.environ.get("HPCIMG_LONG") else 24  # nodes


@pytest.fixture
def cluster(tmp_path: Path, shared: Path) -> Cluster:
    return Cluster(tmp_path, shared, nodes=3)


def test_the_second_node_gets_what_the_first_one_fetched(
    cluster: Cluster, web: WebServer, url: str, sif: bytes
) -> None:
    for node in cluster.nodes:
        staged(node, 1, f"container:{url}", sif, how="fetched")
    assert web.count() == 1
    assert [via(node) for node in cluster.nodes] == [["origin"], ["site"], ["site"]]
    assert len(cluster.images()) == 1
    assert cluster.leftovers() == []
    last = cluster.nodes[-1]
    assert last.hpcimg_json("status")["via"] == {"site": len(sif)}
    assert "from the site tier" in last.hpcimg("status").stdout
    assert "from the site tier in" in last.hpcimg("explain", "1").stdout
    assert f'fetched_via_bytes_total{{via="site"}} {len(sif)}' in last.hpcimg("metrics").stdout


def test_nodes_that_come_at_once_wait_for_one_of_them(
    cluster: Cluster, start: Start, web: WebServer, url: str, sif: bytes
) -> None:
    first, *others = cluster.nodes
    with web.hold("/x.sif", after_bytes=1000) as hold:
        prologs = [start(first, 1, f"container:{url}")]
        hold.wait_reached()
        prologs += [start(node, 2, f"container:{url}") for node in others]
        for node in others:
            wait_until(lambda n=node: any(n.state.glob("inflight/*")), what="it")
        hold.release()
        for prolog in prologs:
            finish(prolog)
    for job, node in zip((1, 2, 2), cluster.nodes, strict=True):
        got(node, job, node.task(job), sif, how="fetched")
    assert web.count() == 1
    assert cluster.leftovers() == []


def test_an_image_in_layers_is_converted_once(cluster: Cluster, registry: Registry) -> None:
    push_image(registry, "bio/x", "1", [make_layer({"etc/motd": b"hello"})])
    images = []
    for node in cluster.nodes:
        cluster.configure(node, f"[registry {registry.host}]\ninsecure = yes\n")
        task = node.stage(1, f"container:docker://{registry.host}/bio/x:1")
        assert task.code == 0, (task.printed, node.log())
        images.append(task.image.read_bytes())
        # As it would be had the node made it itself.
        [meta] = node.cache.glob("meta/layers-*.json")
        assert json.loads(meta.read_text())["source"].startswith("sha256:")
    assert len(set(images)) == 1
    assert [via(node) for node in cluster.nodes] == [["origin"], ["site"], ["site"]]
    assert [len(list(node.cache.glob("blobs/*"))) for node in cluster.nodes] == [1, 0, 0]


@pytest.mark.timeout(600)
def test_a_job_array_on_many_nodes(
    tmp_path: Path, shared: Path, registry: Registry, start: Start
) -> None:
    """Jobs of one node each, all at once: one fetch, one conversion."""
    cluster = Cluster(tmp_path, shared, "wait = 10m\n", nodes=MANY)
    content = make_layer({"etc/motd": b"hello"})
    push_image(registry, "bio/x", "1", [content])
    prologs = []
    for number, node in enumerate(cluster.nodes, start=1):
        cluster.configure(node, f"wait = 10m\n[registry {registry.host}]\ninsecure = yes\n")
        prologs.append(start(node, number, f"container:docker://{registry.host}/bio/x:1"))
    for prolog in prologs:
        output, _ = prolog.communicate(timeout=400)
        assert (prolog.returncode, output) == (0, "")
    found = [node.task(number).image.read_bytes() for number, node in enumerate(cluster.nodes, 1)]
    assert len(set(found)) == 1
    ways = [via(node) for node in cluster.nodes]
    assert sorted(ways) == [["origin"]] + [["site"]] * (MANY - 1)
    digest = hashlib.sha256(content.data).hexdigest()
    assert len(registry.blob_gets(f"sha256:{digest}")) == 1
    gets = [r for r in registry.requests() if r.method == "GET" and "/manifests/" in r.path]
    assert len(gets) == 1
    assert len(cluster.images()) == 1
    assert cluster.leftovers() == []


def test_a_moved_tag_moves_the_bytes_once(
    cluster: Cluster, web: WebServer, url: str, sif: bytes, make_sif: MakeSif
) -> None:
    first, second, third = cluster.nodes
    for node in cluster.nodes:
        cluster.configure(node, "[stage]\ntag_ttl = 0s\n")
    staged(first, 1, f"container:{url}", sif)
    staged(second, 1, f"container:{url}", sif)  # the server says: unchanged
    assert via(second) == ["site"]
    new = make_sif()
    web.put("/x.sif", new, etag='"2"')
    staged(third, 1, f"container:{url}", new)
    staged(first, 2, f"container:{url}", new)
    assert via(third) == ["origin"]
    assert via(first) == ["origin", "site"]
    assert len(cluster.images()) == 2


def test_what_the_server_does_not_answer_is_taken_from_the_tier(
    cluster: Cluster, web: WebServer, url: str, sif: bytes
) -> None:
    first, second, _ = cluster.nodes
    for node in cluster.nodes:
        cluster.configure(node, "[stage]\ntag_ttl = 0s\n")
    staged(first, 1, f"container:{url}", sif)
    before = cluster.records()
    # It breaks off in the middle of something larger, and then says nothing.
    web.put("/x.sif", sif + bytes(1 << 20), etag='"2"')
    web.script("/x.sif", [Truncate(len(sif) + 1000), *[Status(503)] * 100])
    staged(second, 1, f"container:{url}", sif, how="fetched")
    assert via(second) == ["site"]
    staged(first, 2, f"container:{url}", sif, how="stale")
    # Nobody takes that for news, and what is in the tier is as good as before.
    assert cluster.records() == before
    assert len(cluster.images()) == 1


@pytest.mark.parametrize("harm", ["owner", "mode", "link", "above", "inside"])
def test_a_directory_that_a_user_can_write_is_not_used(
    cluster: Cluster, shared: Path, open_directory: Path, url: str, sif: bytes, harm: str
) -> None:
    node = cluster.nodes[0]
    match harm:
        case "owner":
            os.chown(shared, GAMES, GAMES)
        case "mode":
            shared.chmod(0o775)
        case "link":
            shared.rename(open_directory / "other")
            shared.symlink_to(open_directory / "other")
        case "above":
            open_directory.chmod(0o777)
        case "inside":
            staged(cluster.nodes[1], 1, f"container:{url}", sif)
            [images] = shared.glob("v*/images")
            images.chmod(0o777)
    staged(node, 1, f"container:{url}", sif, how="fetched")
    assert via(node) == ["origin"]
    assert "the site tier is bypassed" in node.log()
    assert len(events(node, "site_failed")) == 1
    if harm != "inside":
        assert cluster.images() == []


@pytest.mark.parametrize("harm", ["bytes", "length", "owner", "mode", "link", "gone"])
def test_a_file_that_is_not_what_was_put_there_places_no_byte(
    cluster: Cluster, open_directory: Path, url: str, sif: bytes, harm: str
) -> None:
    first, second, third = cluster.nodes
    staged(first, 1, f"container:{url}", sif)
    [image] = cluster.images()
    match harm:
        case "bytes":
            image.chmod(0o600)
            image.write_bytes(sif[:-1] + b"x")
        case "length":
            image.chmod(0o600)
            image.write_bytes(sif[:-1])
        case "owner":
            os.chown(image, GAMES, GAMES)
        case "mode":
            image.chmod(0o666)
        case "link":
            image.rename(open_directory / "x.sif")
            image.symlink_to(open_directory / "x.sif")
        case "gone":
            image.unlink()
    staged(second, 1, f"container:{url}", sif, how="fetched")
    assert via(second) == ["origin"]
    # It is as it was before.
    staged(third, 1, f"container:{url}", sif)
    assert via(third) == ["site"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"uri": 1}', "null", "\0"])
def test_a_record_that_cannot_be_understood_is_none(
    cluster: Cluster, url: str, sif: bytes, text: str
) -> None:
    first, second, third = cluster.nodes
    staged(first, 1, f"container:{url}", sif)
    [record] = cluster.shared.glob("v*/refs/*")
    good = record.read_text()
    record.write_text(text)
    staged(second, 1, f"container:{url}", sif)
    assert via(second) == ["origin"]
    # A newer release has put something into it besides.
    record.write_text(json.dumps({**json.loads(good), "new": ["x"]}))
    staged(third, 1, f"container:{url}", sif)
    assert via(third) == ["site"]


def test_a_name_that_leads_out_of_the_tier(cluster: Cluster, url: str, sif: bytes) -> None:
    first, second, _ = cluster.nodes
    staged(first, 1, f"container:{url}", sif)
    [record] = cluster.shared.glob("v*/refs/*")
    fields = json.loads(record.read_text())
    record.write_text(json.dumps({**fields, "sha256": "../../../../etc/passwd"}))
    staged(second, 1, f"container:{url}", sif)
    assert via(second) == ["origin"]


def test_one_users_own_image_is_not_there(
    cluster: Cluster, shared: Path, open_directory: Path, sif: bytes
) -> None:
    path = open_directory / "x.sif"
    path.write_bytes(sif)
    os.chown(path, GAMES, GAMES)
    path.chmod(0o600)
    node = cluster.nodes[0]
    node.uid = GAMES
    staged(node, 1, f"container:{path}", sif)
    assert list(shared.iterdir()) == []


def test_an_account_of_the_sites_own_writes_there(
    cluster: Cluster, shared: Path, web: WebServer, url: str, sif: bytes
) -> None:
    os.chown(shared, GAMES, GAMES)
    shared.chmod(0o700)
    for node in cluster.nodes[:2]:
        cluster.configure(node, "account = games\n")
        staged(node, 1, f"container:{url}", sif)
    assert web.count() == 1
    [image] = cluster.images()
    assert image.stat().st_uid == GAMES


def test_the_account_that_fetches_does_not_write_there(
    cluster: Cluster, shared: Path, url: str, sif: bytes
) -> None:
    node = cluster.nodes[0]
    cluster.configure(node, "account = games\n[stage]\naccount = games\n")
    staged(node, 1, f"container:{url}", sif)
    assert "could change all images" in node.log()
    assert list(shared.iterdir()) == []


def test_what_is_not_there_is_asked_for_once(cluster: Cluster, web: WebServer) -> None:
    url = web.url("/missing.sif")
    for node in cluster.nodes:
        refused(node, 1, f"container:{url}", "NotFound")
    assert web.count() == 1
    assert cluster.leftovers() == []


def test_an_image_is_brought_there_before_a_job_needs_it(
    cluster: Cluster, web: WebServer, url: str, sif: bytes
) -> None:
    first, second, third = cluster.nodes
    done = [bring(node, url) for node in (first, first, second)]
    assert done == ["fetched", "there", "there"]
    # What is on the node already is put there as well.
    [image] = cluster.images()
    image.unlink()
    assert bring(first, url) == "hit"
    staged(third, 1, f"container:{url}", sif)
    assert via(third) == ["site"]
    assert web.count() == 1


def bring(node: Node, url: str) -> str:
    conf = load.load(str(node.conf))
    request = Request(parse(url), time.monotonic() + 30, text=url)
    return bringing.bring(conf, open_cache(conf), request)


def age(path: Path, seconds: float) -> None:
    seen = path.lstat().st_mtime - seconds
    os.utime(path, (seen, seen))


def test_what_leaves_the_tier(
    cluster: Cluster, web: WebServer, url: str, sif: bytes, make_sif: MakeSif
) -> None:
    first, second, _ = cluster.nodes
    other = web.put("/y.sif", make_sif())
    for job, each in enumerate((url, other), start=1):
        assert first.stage(job, f"container:{each}").code == 0
    old = next(path for path in cluster.images() if path.read_bytes() == sif)
    age(old, 40 * 86400)
    for record in cluster.shared.glob("v*/refs/*"):
        age(record, 3600)
    mark = old.parent.parent / "readers" / f"{old.stem}~x"
    mark.write_text("")
    # A node is copying it.
    assert second.hpcimg_json("gc", "--site")["evicted"] == []
    mark.unlink()
    assert second.hpcimg_json("gc", "--site", "--dry-run")["evicted"] == [old.name]
    done = second.hpcimg("gc", "--site")
    assert f"{old.name}: evicted" in done.stdout
    assert len(cluster.images()) == len(cluster.records()) == 1
    assert not old.exists()
    # It is fetched again where it is wanted.
    staged(second, 1, f"container:{url}", sif)
    assert via(second) == ["origin"]


def test_it_does_not_grow_beyond_its_size(
    cluster: Cluster, web: WebServer, make_sif: MakeSif
) -> None:
    node = cluster.nodes[0]
    cluster.configure(node, "max_size = 1M\n")
    for job in range(1, 5):
        url = web.put(f"/{job}.sif", make_sif(size_bytes=400_000))
        assert node.stage(job, f"container:{url}").code == 0
        for path in cluster.images():
            age(path, 3600)
        [trimmed] = cluster.shared.glob("v*/trimmed")
        age(trimmed, 3600)
    assert sum(path.stat().st_size for path in cluster.images()) <= 1 << 20
    assert len(cluster.images()) == 2


def test_the_doctor_looks_at_it(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    [found] = [c for c in node.hpcimg_json("doctor")["checks"] if c["check"] == "site"]
    assert found["result"] == "ok"
    assert cluster.leftovers() == []
    cluster.shared.chmod(0o777)
    [found] = [c for c in node.hpcimg_json("doctor")["checks"] if c["check"] == "site"]
    assert found["result"] == "PROBLEM"
    assert "is not safe" in found["why"]


def test_where_there_is_no_tier_there_is_nothing_to_tidy_up(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    node.configure("")
    assert node.hpcimg("gc", "--site").returncode == 31
