"""How long a tag is trusted, and what happens when its server is asked again."""

from __future__ import annotations

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.webfaults import Status
from tests.parts.webserver import WebServer

MINUTE, HOUR = 60, 3600


@pytest.fixture
def comment(node: Node, web: WebServer, sif: bytes) -> str:
    """The comment of a job whose image is on the node already."""
    comment = "container:" + web.put("/x.sif", sif, etag='"1"')
    staged(node, 1, comment, sif, how="fetched")
    return comment


def test_within_the_time_to_live_nobody_is_asked(
    node: Node, web: WebServer, comment: str, sif: bytes
) -> None:
    let_pass(node, HOUR - 60)
    staged(node, 2, comment, sif, how="hit")
    # Nor by the long way, which another spelling takes.
    staged(node, 3, comment.replace("http:", "HTTP:"), sif, how="hit")
    assert web.count() == 1


@pytest.mark.parametrize("how", ["etag", "date"])
def test_after_it_one_question_settles_it(node: Node, web: WebServer, sif: bytes, how: str) -> None:
    tags = {"etag": '"1"'} if how == "etag" else {"last_modified": 1_700_000_000}
    comment = f"container:{web.put('/x.sif', sif, **tags)}"
    staged(node, 1, comment, sif, how="fetched")
    let_pass(node, HOUR + 1)
    staged(node, 2, comment, sif, how="unchanged")
    assert [request.status for request in web.requests()] == [200, 304]
    assert web.requests()[1].sent_bytes == 0
    # For another hour.
    staged(node, 3, comment, sif, how="hit")
    assert web.count() == 2


def test_a_server_without_validators_sends_it_again(node: Node, web: WebServer, sif: bytes) -> None:
    comment = f"container:{web.put('/x.sif', sif)}"
    staged(node, 1, comment, sif)
    before = node.images()[0].stat().st_ino
    let_pass(node, HOUR + 1)
    staged(node, 2, comment, sif, how="fetched")
    # The same content: the file that jobs have open stays what it is.
    assert [path.stat().st_ino for path in node.images()] == [before]


def test_a_time_to_live_of_the_sites_own(
    node: Node, web: WebServer, comment: str, sif: bytes
) -> None:
    node.configure("[stage]\ntag_ttl = 0\n")
    staged(node, 2, comment, sif, how="unchanged")
    staged(node, 3, comment, sif, how="unchanged")
    node.configure("[stage]\ntag_ttl = 2d\n")
    let_pass(node, 47 * HOUR)
    staged(node, 4, comment, sif, how="hit")
    assert web.count() == 3


def test_what_has_changed_is_fetched_and_the_old_one_stays_with_its_jobs(
    node: Node, web: WebServer, comment: str, sif: bytes, make_sif: MakeSif
) -> None:
    old = node.task(1)
    new = make_sif()
    web.put("/x.sif", new, etag='"2"')
    staged(node, 2, comment, sif, how="hit")
    let_pass(node, HOUR + 1)
    staged(node, 3, comment, new, how="fetched")
    staged(node, 4, comment, new, how="hit")
    assert old.image.read_bytes() == sif
    assert len(node.images()) == 2


def test_a_server_that_is_down_is_stood_in_for_and_left_alone_for_a_minute(
    node: Node, web: WebServer, comment: str, sif: bytes
) -> None:
    let_pass(node, HOUR + 1)
    web.script("/x.sif", [Status(503, retry_after="0")] * 9)
    staged(node, 2, comment, sif, how="stale")
    asked = web.count()
    assert asked > 1
    warning = (
        "WARNING: " + comment.removeprefix("container:") + ": serving the image cached 1 h ago"
    )
    assert node.log().count(warning) == 1
    assert "the server answered 503" in node.log()
    let_pass(node, 10)
    staged(node, 3, comment, sif, how="hit")
    staged(node, 4, comment.replace("http:", "HTTP:"), sif, how="hit")
    assert web.count() == asked
    let_pass(node, 51)
    web.script("/x.sif", [])
    staged(node, 5, comment, sif, how="unchanged")
    assert web.count() == asked + 1


def test_nobody_answers_at_all(node: Node, sif: bytes) -> None:
    with WebServer() as web:
        comment = f"container:{web.put('/x.sif', sif)}"
        staged(node, 1, comment, sif)
    let_pass(node, HOUR + 1)
    staged(node, 2, comment, sif, how="stale")
    assert "Connection refused" in node.log()


@pytest.mark.parametrize(("status", "error"), [(404, "NotFound"), (403, "Forbidden")])
def test_a_server_that_takes_it_back_is_believed(
    node: Node, web: WebServer, comment: str, status: int, error: str
) -> None:
    let_pass(node, HOUR + 1)
    web.script("/x.sif", [Status(status)] * 2)
    refused(node, 2, comment, error)
    # And so are those who say no again.
    let_pass(node, MINUTE)
    refused(node, 3, comment, error)
    assert web.count() == 3


def test_a_304_that_nobody_asked_for(node: Node, web: WebServer, sif: bytes) -> None:
    comment = f"container:{web.put('/x.sif', sif)}"
    web.script("/x.sif", [Status(304, body=b"")])
    refused(node, 1, comment, "UserError", "the server answered 304 Not Modified")
