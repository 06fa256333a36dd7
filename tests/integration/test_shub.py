"""shub:// at a stand-in that speaks the protocol of Singularity Hub and sregistry."""

from __future__ import annotations

import json

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.publish import in_hub
from tests.parts.webserver import WebServer

HOUR = 3600


@pytest.fixture
def hub(node: Node, web: WebServer) -> WebServer:
    """A hub, configured for the node."""
    node.configure(f"[shub]\nurl = {web.url('')}\n")
    return web


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("lab/samtools", "lab/samtools:latest"),
        ("lab/samtools:1.9", "lab/samtools:1.9"),
        ("lab/samtools:1.9@0a1b", "lab/samtools:1.9@0a1b"),
        ("lab/samtools@0a1b", "lab/samtools:latest@0a1b"),
    ],
)
def test_an_image(node: Node, hub: WebServer, make_sif: MakeSif, written: str, asked: str) -> None:
    data = make_sif()
    in_hub(hub, asked, data, "1")
    staged(node, 1, f"container:shub://{written}", data, how="fetched")
    staged(node, 2, f"container:shub://{written}", data, how="hit")


def test_a_host_in_the_reference(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    host = f"127.0.0.1:{web.port}"
    node.configure(f"[registry {host}]\ninsecure = yes\n")
    data = make_sif()
    in_hub(web, "lab/samtools:1@c0", data, "1")
    staged(node, 1, f"container:shub://{host}/lab/samtools:1@c0", data)


def test_after_the_ttl_one_request_tells(node: Node, hub: WebServer, make_sif: MakeSif) -> None:
    first, second = make_sif(), make_sif()
    in_hub(hub, "lab/samtools:latest", first, "1")
    staged(node, 1, "container:shub://lab/samtools", first)
    before = hub.count()
    let_pass(node, 2 * HOUR)
    staged(node, 2, "container:shub://lab/samtools", first, how="unchanged")
    assert hub.count() == before + 1
    in_hub(hub, "lab/samtools:latest", second, "2")
    let_pass(node, 2 * HOUR)
    staged(node, 3, "container:shub://lab/samtools", second, how="fetched")


def test_a_hub_without_versions_is_not_taken_for_unchanged(
    node: Node, hub: WebServer, make_sif: MakeSif
) -> None:
    images = make_sif(), make_sif()
    for job, data in enumerate(images, start=1):
        url = hub.put("/files/x.sif", data)
        hub.put("/api/container/lab/samtools:latest", json.dumps({"image": url}).encode())
        staged(node, job, "container:shub://lab/samtools", data, how="fetched")
        let_pass(node, 2 * HOUR)


def test_what_is_not_there(node: Node, hub: WebServer) -> None:
    uri = "shub://lab/samtools"
    refused(node, 1, f"container:{uri}", "NotFound", f"there is nothing at {uri}")
    hub.put("/api/container/lab/samtools:latest", b'{"image": "file:///etc/passwd"}')
    let_pass(node, 60)
    refused(node, 2, f"container:{uri}", "NotAnImage", uri)


@pytest.mark.parametrize(
    "text", ["lab", "a/b/c/d", "lab/samtools:1:2", "lab/samtools@", "lab/../x"]
)
def test_what_is_no_name(node: Node, hub: WebServer, text: str) -> None:
    refused(node, 1, f"container:shub://{text}", "BadReference")
    assert hub.count() == 0
