"""Downloads from a web server that misbehaves in every way that web servers do."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import NamedTuple

import pytest

from tests.integration.checks import failed, got, refused, staged, together
from tests.integration.conftest import MakeSif, Start
from tests.parts.node import Node
from tests.parts.webanswer import Answer, Fault, Request, Resource
from tests.parts.webfaults import (
    Chunked,
    Endless,
    IgnoreRange,
    NoLength,
    Ok,
    Reset,
    Slow,
    Stall,
    Status,
    Truncate,
    WrongLength,
    WrongRange,
)
from tests.parts.webserver import WebServer

PATH = "/x.sif"
SIZE = 2_002_944  # whole pages, as images have
HALF = 1_000_000


@pytest.fixture
def sif(make_sif: MakeSif) -> bytes:
    return make_sif(size_bytes=SIZE)


@pytest.fixture
def comment(web: WebServer, sif: bytes) -> str:
    return "container:" + web.put(PATH, sif, etag='"1"')


def serve(web: WebServer, data: bytes, *scripts: list[Fault]) -> list[str]:
    """Serve the data once for each script, as /0.sif and so on; return a comment for each."""
    comments = []
    for number, script in enumerate(scripts):
        path = f"/{number}.sif"
        comments.append("container:" + web.put(path, data, etag='"1"'))
        web.script(path, script)
    return comments


def asked(web: WebServer, path: str) -> list[str]:
    """Return what each request for a path asked for: from which byte on, "" for all of it."""
    return [request.headers.get("Range", "") for request in web.requests(path=path)]


def both(first: Fault, second: Fault) -> Fault:
    """Combine two faults."""

    def fault(answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return second(first(answer, request, resource), request, resource)

    return fault


class Noted:
    """Notes when a request came, then does what another fault does."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self.at = 0.0

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        self.at = time.monotonic()
        return self._fault(answer, request, resource)


# Going on where it ended


class Case(NamedTuple):
    """What a server does wrong, and from which byte on it is asked each time; "" is from all."""

    name: str
    faults: list[Fault]
    asked: list[str]
    etag: str = '"1"'
    date: float | None = None


CASES = [
    Case("goes on where it ended", [Truncate(HALF)], ["", f"bytes={HALF}-"]),
    Case(
        "again and again",
        [Truncate(100_000), Truncate(200_000)],
        ["", "bytes=100000-", "bytes=300000-"],
    ),
    Case("by date", [Truncate(HALF)], ["", f"bytes={HALF}-"], etag="", date=1_700_000_000),
    # Nothing says that it is the same file.
    Case("weak", [Truncate(HALF)], ["", ""], etag='W/"1"'),
    Case("none", [Truncate(HALF)], ["", ""], etag=""),
    # The server does not do as it is asked.
    Case("all", [Truncate(HALF), IgnoreRange()], ["", f"bytes={HALF}-"]),
    Case("a byte early", [Truncate(HALF), WrongRange(-1)], ["", f"bytes={HALF}-", ""]),
    Case("a byte late", [Truncate(HALF), WrongRange(1)], ["", f"bytes={HALF}-", ""]),
    # All is there, but the server had announced more: there is no such part.
    Case("more announced", [WrongLength(+7)], ["", f"bytes={SIZE}-", ""]),
    Case("from the start", [Truncate(HALF), WrongRange(-HALF)], ["", f"bytes={HALF}-", ""]),
]


def test_goes_on_where_it_ended_if_that_is_safe(
    start: Start, node: Node, web: WebServer, sif: bytes
) -> None:
    comments = []
    for number, case in enumerate(CASES):
        url = web.put(f"/{number}", sif, etag=case.etag, last_modified=case.date)
        web.script(f"/{number}", case.faults)
        comments.append(f"container:{url}")
    tasks = together(start, node, *comments)
    for number, (case, (job, task)) in enumerate(zip(CASES, tasks.items(), strict=True)):
        got(node, job, task, sif)
        assert (case.name, asked(web, f"/{number}")) == (case.name, case.asked)
    conditions = {
        request.headers["If-Range"] for request in web.requests() if "Range" in request.headers
    }
    assert conditions == {'"1"', formatdate(1_700_000_000, usegmt=True)}
    assert node.log().count("sent the wrong part") == 3


def test_begins_again_where_the_connection_was_reset(
    start: Start, node: Node, web: WebServer, sif: bytes
) -> None:
    # How much of what was on its way is lost then is the kernel's business.
    comments = serve(web, sif, [Reset()], [Reset(1000)], [Reset(HALF)])
    for job, task in together(start, node, *comments).items():
        got(node, job, task, sif)
    assert web.count() == 6


def test_a_file_that_changed_in_between_is_fetched_anew(
    start: Start, node: Node, web: WebServer, sif: bytes, make_sif: MakeSif
) -> None:
    changed = {"/same-size": make_sif(size_bytes=SIZE), "/larger": make_sif(size_bytes=2 * SIZE)}

    def replace(answer: Answer, request: Request, resource: Resource | None) -> Answer:
        web.put(request.path, changed[request.path], etag='"2"')
        return Truncate(HALF)(answer, request, resource)

    comments = []
    for path in changed:
        comments.append("container:" + web.put(path, sif, etag='"1"'))
        web.script(path, [replace])
    tasks = together(start, node, *comments)
    for (path, new), (job, task) in zip(changed.items(), tasks.items(), strict=True):
        got(node, job, task, new)
        assert asked(web, path) == ["", f"bytes={HALF}-"]
    # And it is remembered by its own name.
    node.configure("[stage]\ntag_ttl = 0\n")
    staged(node, 3, " ".join(comments), *changed.values(), how="unchanged")


# A server that is busy


def test_waits_as_many_seconds_as_the_server_wishes(
    node: Node, web: WebServer, comment: str, sif: bytes
) -> None:
    first, second = Noted(Status(429, retry_after="1")), Noted(Ok())
    web.script(PATH, [first, second])
    staged(node, 1, comment, sif)
    assert 1 <= second.at - first.at < 10
    assert "the server answered 429" in node.log()


def test_waits_until_the_date_that_the_server_names(
    node: Node, web: WebServer, comment: str, sif: bytes
) -> None:
    # A date has whole seconds: this one is one to two of them away.
    when = int(time.time()) + 2
    first, second = Noted(Status(503, retry_after=formatdate(when, usegmt=True))), Noted(Ok())
    web.script(PATH, [first, second])
    staged(node, 1, comment, sif)
    assert time.time() >= when
    assert second.at - first.at < 10


def test_does_not_wait_beyond_its_deadline(node: Node, web: WebServer, comment: str) -> None:
    node.configure("[stage]\ndeadline = 60s\n")
    web.script(PATH, [Status(503, retry_after="300")])
    began = time.monotonic()
    refused(node, 1, comment, "Unreachable", "is unavailable now", "the server answered 503")
    assert time.monotonic() - began < 60
    assert web.count() == 1


def test_tries_again_what_may_pass(start: Start, node: Node, web: WebServer, sif: bytes) -> None:
    statuses = (408, 425, 429, 500, 502, 503, 504)
    scripts: list[list[Fault]] = [[Status(status, retry_after="0")] * 2 for status in statuses]
    for job, task in together(start, node, *serve(web, sif, *scripts)).items():
        got(node, job, task, sif)
    assert web.count() == 3 * len(statuses)
    assert all(f"the server answered {status} " in node.log() for status in statuses)


def test_gives_up_at_last(node: Node, web: WebServer, comment: str) -> None:
    again, for_long = Status(503, retry_after="0"), Status(503, retry_after="600")
    web.script(PATH, [again, Truncate(HALF), again, again, for_long])
    refused(node, 1, comment, "Unreachable", "is unavailable now", "the server answered 503")
    assert node.record(1)["class"] == "transient"
    assert web.count() == 5
    assert node.images() == []


def test_a_wish_that_makes_no_sense_is_none(
    start: Start, node: Node, web: WebServer, sif: bytes
) -> None:
    wishes = ["\N{SUPERSCRIPT TWO}", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "soon"]
    scripts: list[list[Fault]] = [[Status(503, retry_after=wish)] for wish in wishes]
    for job, task in together(start, node, *serve(web, sif, *scripts)).items():
        got(node, job, task, sif)


# A server that is slow


def test_a_silence_is_waited_for_no_longer_than_the_site_says(
    start: Start, node: Node, web: WebServer, sif: bytes
) -> None:
    node.configure("[stage]\nstall_timeout = 0.5s\n")
    comments = serve(web, sif, [Stall(60)], [Stall(60, HALF)])
    for job, task in together(start, node, *comments).items():
        got(node, job, task, sif)
    assert min(web.count(path="/0.sif"), web.count(path="/1.sif")) > 1
    # What had come before the silence is kept.
    assert any("Range" in request.headers for request in web.requests(path="/1.sif"))
    assert "timed out" in node.log()


def test_a_server_that_is_too_slow_for_the_deadline(
    node: Node, web: WebServer, comment: str
) -> None:
    node.configure("[stage]\ndeadline = 1s\n")
    web.script(PATH, [Slow(100_000)])
    began = time.monotonic()
    refused(node, 1, comment, "DeadlinePassed", "was not ready in time", "the deadline")
    assert 1 <= time.monotonic() - began < 10
    assert node.record(1)["class"] == "transient"
    assert node.images() == []


# Lengths


def test_a_length_is_not_needed(start: Start, node: Node, web: WebServer, sif: bytes) -> None:
    for job, task in together(start, node, *serve(web, sif, [Chunked()], [NoLength()])).items():
        got(node, job, task, sif)
    assert web.count() == 2


def test_a_length_that_makes_no_sense_is_no_surprise(
    start: Start, node: Node, web: WebServer, sif: bytes
) -> None:
    node.configure("[stage]\ndeadline = 2s\n")
    lengths = ["\N{SUPERSCRIPT TWO}", "-1", "many", "9" * 5000, "1, 2"]
    for number, length in enumerate(lengths):
        headers = {"Content-Length": length, "Connection": "close"}
        web.put(f"/{number}.sif", sif, headers=headers)
    comments = [f"container:{web.url(f'/{number}.sif')}" for number in range(len(lengths))]
    for job in together(start, node, *comments):
        # Taken or not, but never a mistake of ours.
        assert node.record(job).get("class") in (None, "transient", "user")
    assert "Traceback" not in node.log()


def test_fewer_bytes_announced_than_the_image_has(
    node: Node, web: WebServer, comment: str, sif: bytes
) -> None:
    web.script(PATH, [WrongLength(-7)])
    refused(node, 1, comment, "Damaged", "is truncated", f"{len(sif) - 7} arrived")
    assert node.record(1)["class"] == "transient"
    assert node.images() == []


def test_cut_off_where_nobody_can_tell_but_the_image_itself(
    start: Start, node: Node, web: WebServer, sif: bytes
) -> None:
    cases = [
        (HALF, "Damaged", "is truncated"),
        (100, "Damaged", "is truncated"),
        (20, "NotAnImage", "is not an image"),
        (0, "NotAnImage", "the file is empty"),
    ]
    scripts = [[both(NoLength(), Truncate(at))] for at, _, _ in cases]
    tasks = together(start, node, *serve(web, sif, *scripts))
    for (job, task), (_, error, words) in zip(tasks.items(), cases, strict=True):
        failed(node, job, task, error, words)
    assert node.images() == []


def test_a_body_without_an_end_meets_the_limit(node: Node, web: WebServer, comment: str) -> None:
    node.configure("[policy]\nmax_image_size = 20M\n")
    web.script(PATH, [Endless()])
    refused(node, 1, comment, "TooLarge", "is too large", "accepts images up to 20.0 MiB")
    assert node.record(1)["class"] == "user"
    assert node.images() == []


def test_what_is_announced_as_too_large_is_not_fetched(
    node: Node, web: WebServer, comment: str
) -> None:
    node.configure("[policy]\nmax_image_size = 1M\n")
    with web.hold(PATH):
        # No byte of it is waited for.
        refused(node, 1, comment, "TooLarge", "accepts images up to 1.0 MiB")


def test_what_is_larger_than_the_whole_cache_is_not_fetched(
    node: Node, web: WebServer, comment: str
) -> None:
    node.configure("[cache]\nmax_size = 1M\n")
    with web.hold(PATH):
        refused(node, 1, comment, "TooLarge", "1.9 MiB", "the cache holds 1.0 MiB")
