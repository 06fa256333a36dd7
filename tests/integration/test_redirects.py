"""Redirects to the letter, and never out of TLS; interim responses; bodies packed on the way."""

from __future__ import annotations

import gzip
import hashlib
import time

import pytest
import urllib3

from hpcimg.errors import Damaged, Forbidden, NotFound, Unreachable, UserError
from hpcimg.fetch.contract import Blob
from hpcimg.fetch.settings import Settings
from hpcimg.http.connections import Response
from hpcimg.http.download import Get, download
from hpcimg.http.session import check_status, open_session, request
from tests.parts.node import LOOPBACK
from tests.parts.registryclient import Connect, Target
from tests.parts.webanswer import Answer
from tests.parts.webfaults import Redirect
from tests.parts.webserver import WebServer

BLOB = bytes(range(256)) * 4096
SIGNED = "?sig=a%2bb%2Fc%7e&x=%e4"


def settings() -> Settings:
    networks = tuple(LOOPBACK.split())
    return Settings(3, time.monotonic() + 30, 5, 5, networks=networks)


def get(url: str) -> int:
    given = settings()
    with open_session(given) as session, request(session, url, given) as response:
        check_status(response)
        return response.status


@pytest.mark.parametrize(
    "goal",
    ["/goal%2d", "http://127.0.0.1:{port}/goal%2d", "http://us:s3cret@127.0.0.1:{port}/goal%2d"],
)
def test_a_signed_address_stays_what_was_signed(web: WebServer, goal: str) -> None:
    web.handle("/goal%2d", lambda _: Answer(200))
    goal = goal.format(port=web.port) + SIGNED
    web.script("/from", [Redirect(goal)])
    assert get(web.url("/from")) == 200
    assert get(web.url("/goal%2d" + SIGNED)) == 200
    assert {request.query for request in web.requests(path="/goal%2d")} == {SIGNED[1:]}
    assert {request.headers["Authorization"] for request in web.requests()} == {None}


def test_of_a_signed_address_only_what_none_may_have_is_escaped(web: WebServer) -> None:
    web.put("/goal%2d", b"x")
    web.script("/from", [Redirect("/goal%2d?sig=a%2bb%7e&name=x y|[1]")])
    assert get(web.url("/from")) == 200
    assert web.requests()[-1].query == "sig=a%2bb%7e&name=x%20y%7C[1]"


def test_a_redirect_to_nowhere_is_no_answer(web: WebServer) -> None:
    web.handle("/x", lambda _: Answer(302, {"Location": ""}))
    with pytest.raises(UserError, match="the server answered 302 Found"):
        get(web.url("/x"))


def test_blanks_around_an_address_do_not_belong_to_it(web: WebServer) -> None:
    web.put("/goal", b"x")
    web.handle("/from", lambda _: Answer(302, {"Location": f" {web.url('/goal')} \t"}))
    assert get(web.url("/from")) == 200


def test_an_address_that_is_not_utf_8_is_kept(web: WebServer) -> None:
    web.put("/goal%E9", b"x")
    web.handle("/from", lambda _: Answer(302, {"Location": "/goal\xe9"}))
    assert get(web.url("/from")) == 200


@pytest.mark.parametrize("status", [204, 205, 300, 302, 304])
def test_what_comes_without_the_content_is_no_answer(web: WebServer, status: int) -> None:
    web.handle("/x", lambda _: Answer(status))
    with pytest.raises(UserError, match=f"the server answered {status} "):
        get(web.url("/x"))


@pytest.mark.parametrize(
    "place", ["//[", "http://h:x/", "http://a..b/", "ftp://h/", "http://u@\\/"]
)
def test_an_address_that_is_none_is_the_servers_fault(web: WebServer, place: str) -> None:
    web.handle("/from", lambda _: Answer(302, {"Location": place}))
    with pytest.raises((Unreachable, Forbidden)) as caught:
        get(web.url("/from"))
    assert "/from" in caught.value.what


def test_what_is_told_of_an_answer_and_of_none() -> None:
    for status, named in ((404, "404 Not Found"), (599, "599")):
        raw = urllib3.HTTPResponse(status=status, reason="whatever a server says")
        with pytest.raises((NotFound, Unreachable)) as caught:
            check_status(Response(status, raw.headers, "http://h/x", {}, raw))
        assert caught.value.why == f"the server answered {named}"
    with pytest.raises(Unreachable, match=r"read: Failed to establish a new connection: "):
        get("http://127.0.0.1:9/x")


@pytest.mark.parametrize(
    "interim", ["103 Early Hints\r\nLink: </x>", "102 Processing", "100 Continue"]
)
def test_interim_responses_are_none(web: WebServer, interim: str) -> None:
    between = f"HTTP/1.1 {interim}\r\n\r\n" * 2
    whole = f"{between}HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    web.handle("/x", lambda _: Answer(0, body=whole.encode(), framing="raw"))
    given = settings()
    with open_session(given) as session, request(session, web.url("/x"), given) as response:
        assert (response.status, response.raw.read()) == (200, b"x")


def test_interim_responses_end(web: WebServer) -> None:
    without_end = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    web.handle("/x", lambda _: Answer(0, body=without_end, framing="raw", endless=True))
    with pytest.raises(Unreachable, match="too many interim responses"):
        get(web.url("/x"))


def test_ten_redirects_are_followed(web: WebServer) -> None:
    for number in range(11):
        goal = f"/{number + 1}"
        web.handle(f"/{number}", lambda _, goal=goal: Answer(302, {"Location": goal}))
    web.put("/11", b"x")
    assert get(web.url("/1")) == 200
    with pytest.raises(Exception, match="redirects more than 10 times"):
        get(web.url("/0"))


def test_from_tls_nobody_is_sent_to_plain_http(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.put("/x", b"x")
    with WebServer(tls=True) as secure:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure.certificate))
        secure.script("/x", [Redirect(web.url("/x"))])
        with pytest.raises(Forbidden, match="redirects from https to plain http, at 127"):
            get(secure.url("/x"))
        web.script("/x", [Redirect(secure.url("/y"))])
        secure.put("/y", b"y")
        assert get(web.url("/x")) == 200
    assert web.count() == 1


@pytest.mark.parametrize("coding", ["gzip", "x-gzip"])
def test_a_blob_that_is_packed_on_the_way_and_one_that_is_said_to_be(
    web: WebServer, target: Target, coding: str
) -> None:
    packed = gzip.compress(BLOB)
    stored, body = (BLOB, packed) if coding == "gzip" else (packed, packed)
    answer = Answer(200, {"Content-Encoding": coding, "ETag": '"1"'}, body)
    web.handle("/blob", lambda _: answer)
    given = settings()
    with open_session(given) as session:
        blob = Blob(hashlib.sha256(stored).hexdigest(), len(stored))
        download(session, Get(web.url("/blob")), target.sink, given, stored=blob)
    assert target.content() == stored


@pytest.mark.parametrize("packed", [True, False])
def test_a_config_that_is_packed_on_the_way(web: WebServer, connect: Connect, packed: bool) -> None:
    config = b'{"os": "linux"}'
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    body = gzip.compress(config) if packed else config
    answer = Answer(200, {"Content-Encoding": "gzip"}, body)
    web.handle(f"/v2/lab/x/blobs/{digest}", lambda _: answer)
    registry = connect(f"127.0.0.1:{web.port}/lab/x:1")
    assert registry.read_blob(digest) == config.decode()
    web.handle(f"/v2/lab/x/blobs/sha256:{'0' * 64}", lambda _: answer)
    with pytest.raises(Damaged):
        registry.read_blob(f"sha256:{'0' * 64}")


def test_a_body_without_a_length_that_is_cut(
    web: WebServer, connect: Connect, target: Target
) -> None:
    digest = hashlib.sha256(BLOB).hexdigest()
    answers = iter([BLOB[:1000], BLOB])
    path = f"/v2/lab/x/blobs/sha256:{digest}"
    web.handle(path, lambda _: Answer(200, body=next(answers), framing="close"))
    connect(f"127.0.0.1:{web.port}/lab/x:1").download(Blob(digest, len(BLOB)), target.sink)
    assert target.content() == BLOB


def test_a_length_beside_chunks_means_nothing(web: WebServer, target: Target) -> None:
    answer = Answer(200, {"Content-Length": "1"}, BLOB, framing="chunked")
    web.handle("/blob", lambda _: answer)
    given = settings()
    with open_session(given) as session:
        download(session, Get(web.url("/blob")), target.sink, given)
    assert target.content() == BLOB


def test_an_empty_blob(web: WebServer, connect: Connect, target: Target) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    web.put(f"/v2/lab/x/blobs/sha256:{digest}", b"")
    connect(f"127.0.0.1:{web.port}/lab/x:1").download(Blob(digest, 0), target.sink)
    assert target.content() == b""
