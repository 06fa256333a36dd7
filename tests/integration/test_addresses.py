"""Web addresses that lead elsewhere or nowhere."""

from __future__ import annotations

import pytest

from tests.integration.checks import failed, refused, staged, together
from tests.integration.conftest import Start
from tests.parts.node import Node
from tests.parts.webfaults import Redirect, RedirectLoop
from tests.parts.webserver import WebServer

PATH = "/x.sif"


@pytest.fixture
def comment(url: str) -> str:
    return f"container:{url}"


# Addresses


def test_redirects_are_followed(node: Node, web: WebServer, comment: str, sif: bytes) -> None:
    web.script("/from", [Redirect("/on", 301)])
    web.script("/on", [Redirect(web.url(PATH), 307)])
    staged(node, 1, f"container:{web.url('/from')}", sif)


def test_redirects_in_a_circle(node: Node, web: WebServer, comment: str) -> None:
    web.script(PATH, [RedirectLoop()])
    refused(node, 1, comment, "NotFound", "leads nowhere", "redirects more than 10 times")
    assert web.count() == 11


def test_redirects_to_no_address(start: Start, node: Node, web: WebServer) -> None:
    places = ["gopher://h/x", "file:///etc/passwd", "http://h:99999/x", "http://[::1"]
    for number, place in enumerate(places):
        web.script(f"/{number}", [Redirect(place)])
    comments = [f"container:{web.url(f'/{number}')}" for number in range(len(places))]
    for job, task in together(start, node, *comments).items():
        failed(node, job, task, "Unreachable", "redirects to an address that is not http")
        assert web.count(path=f"/{job - 1}") == 1


def test_no_address(start: Start, node: Node) -> None:
    hosts = ["[::1", "h:99999", "a..b", "x" * 64, ":80", "127.1", "0x7f.0.0.1", "0"]
    comments = [f"container:http://{host}/x.sif" for host in hosts]
    for job, task in together(start, node, *comments).items():
        failed(node, job, task, "BadReference")


def test_no_server_there(node: Node) -> None:
    node.configure("[stage]\ndeadline = 6s\n")
    task = node.stage(1, "container:http://127.0.0.1:1/x.sif")
    # At its deadline it may be in the middle of a try.
    assert node.record(1)["error"] in ("Unreachable", "DeadlinePassed")
    failed(node, 1, task, node.record(1)["error"])
    assert "could not be read" in node.log()
    assert "Connection refused" in node.log()


def test_the_query_is_part_of_the_address_and_kept_nowhere(
    node: Node, web: WebServer, comment: str, sif: bytes
) -> None:
    url = comment.removeprefix("container:")
    staged(node, 1, f"{comment}?signature=s3cret", sif)
    staged(node, 2, f"{comment}?signature=s3cret", sif, how="hit")
    assert web.requests()[0].query == "signature=s3cret"
    assert node.hpcimg("path", f"{url}?signature=s3cret").returncode == 0
    assert node.hpcimg("path", f"{url}?signature=s4cret").returncode != 0
    web.remove(PATH)
    refused(node, 3, f"{comment}?signature=s4cret", "NotFound", "there is nothing at")
    refused(node, 4, f"container:{url.replace('//', '//jo:s5cret@')}", "BadReference")
    assert node.hpcimg("stage", f"{url}?signature=s4cret").returncode != 0
    said = "".join(node.task(job).printed for job in (3, 4)) + node.log()
    said += "".join(node.hpcimg(*words.split()).stdout for words in ("ls", "status", "ls --json"))
    # What the job's user wrote is that user's to read, and root's.
    for path in [*node.cache.rglob("*"), *node.state.rglob("*")]:
        if path.is_file() and path.suffix != ".sif" and path.name != "record.json":
            said += path.read_text() if path.parts[-3] != "hot" else ""
    assert "cret" not in said
    assert f"{url}?signature=..." in said


def test_bytes_are_taken_as_they_are(node: Node, web: WebServer, sif: bytes) -> None:
    # Some servers mark everything as compressed.
    url = web.put(PATH, sif, headers={"Content-Encoding": "gzip"})
    staged(node, 1, f"container:{url}", sif)
    assert web.requests()[0].headers["Accept-Encoding"] == "identity"
