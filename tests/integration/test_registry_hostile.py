"""Hostile registries: a web server stands in for them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Lock
from typing import Any

import pytest
from urllib3.util import connection

from hpcimg.errors import BadReference, Forbidden, NotFound, Unreachable
from hpcimg.fetch.contract import Blob
from hpcimg.http.urls import origin
from hpcimg.sources.oci.registry import Registry
from tests.parts.registryclient import Connect, Target, auth_file, connected
from tests.parts.webanswer import Answer, Request, Resource, Stop, right_answer
from tests.parts.webfaults import Redirect, Status, Truncate
from tests.parts.webserver import WebServer

MANIFEST = json.dumps({"schemaVersion": 2, "layers": []}).encode()
MANIFEST_PATH = "/v2/lab/x/manifests/1"
BLOB = bytes(range(256)) * 4096
LAYER = Blob(hashlib.sha256(BLOB).hexdigest(), len(BLOB))
BLOB_PATH = f"/v2/lab/x/blobs/sha256:{LAYER.sha256}"
SECRETS = ("s3cret", "am86czNjcmV0", "1dentity", "tok3n")


class Place:
    """A registry that wants a header, and a client for it that has a login."""

    def __init__(self, web: WebServer, connect: Connect) -> None:
        self.web = web
        self.host = f"127.0.0.1:{web.port}"
        self._connect = connect
        web.put(BLOB_PATH, BLOB, etag='"1"')

    def client(self, **settings: Any) -> Registry:
        credentials = settings.pop("credentials", auth_file(self.host))
        return self._connect(f"{self.host}/lab/x:1", credentials=credentials, **settings)

    def wants(self, challenge: str, *good: str, paths: tuple[str, ...] = (MANIFEST_PATH,)) -> None:
        """Ask for one of these headers at these paths."""

        def answer(request: Request) -> Answer:
            if request.headers["Authorization"] in good:
                return Answer(200, {}, MANIFEST)
            return Answer(401, {"WWW-Authenticate": challenge})

        for path in paths:
            self.web.handle(path, answer)


@pytest.fixture
def place(web: WebServer, connect: Connect) -> Place:
    return Place(web, connect)


def test_a_login_does_not_follow_a_redirect(place: Place, target: Target) -> None:
    place.wants('Basic realm="x"', "Basic am86czNjcmV0")
    client = place.client()
    assert client.manifest()
    with WebServer() as storage:
        goal = storage.put("/blob", BLOB)
        place.web.handle(BLOB_PATH, lambda _: Answer(307, {"Location": f"{goal}?signature=s3cret"}))
        client.download(LAYER, target.sink)
        assert target.content() == BLOB
        [request] = storage.requests()
        assert "Authorization" not in request.headers
        # Nor is a question answered that comes from there.
        storage.handle("/blob", lambda _: Answer(401, {"WWW-Authenticate": 'Basic realm="x"'}))
        target.sink.rewind()
        with pytest.raises(Forbidden) as caught:
            client.download(LAYER, target.sink)
        assert storage.count() == 2
        assert "Authorization" not in storage.requests()[-1].headers
    assert not any(secret in str(caught.value.to_dict()) for secret in SECRETS)


def test_a_question_from_another_host_is_not_answered(place: Place) -> None:
    with WebServer() as other:
        challenge = f'Bearer realm="{other.url("/token")}"'
        other.handle("/m", lambda _: Answer(401, {"WWW-Authenticate": challenge}))
        place.web.handle(MANIFEST_PATH, lambda _: Answer(307, {"Location": other.url("/m")}))
        with pytest.raises(Forbidden):
            place.client().manifest()
        assert [request.path for request in other.requests()] == ["/m"]


@pytest.mark.parametrize(
    ("realm", "words"),
    [
        ("ftp://auth.example.org/token", "no http address"),
        ("/token", "no http address"),
        ("http://[", "no address"),
        ("https://a:b@auth.example.org/token", "no http address"),
        ("https://auth.example.org:x/", "no address"),
        ("http://169.254.169.254/latest/meta-data", "a link-local address, 169.254.169.254"),
    ],
)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_where_no_login_is_sent(place: Place, realm: str, words: str, scheme: str) -> None:
    place.wants(f'{scheme} realm="{realm}",service="s"')
    for credentials in (auth_file(place.host), ""):
        with pytest.raises(Forbidden, match="may not be read") as caught:
            place.client(credentials=credentials).manifest()
        assert words in caught.value.why


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "\xe4.example.org", "%00", "a_b!"])
def test_a_realm_that_is_no_name(place: Place, host: str) -> None:
    place.wants(f'Bearer realm="https://{host}/token"')
    with pytest.raises((BadReference, Unreachable)):
        place.client(tries=1).manifest()


def test_no_login_in_plain_http_for_a_registry_with_tls(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WebServer(tls=True) as secure, WebServer() as plain, ExitStack() as stack:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure.certificate))
        connect = stack.enter_context(connected(target))
        plain.handle("/token", lambda _: Answer(200, {}, b'{"token": "tok3n"}'))
        place = Place(secure, connect)
        place.wants(f'Bearer realm="{plain.url("/token")}"', "Bearer tok3n")
        with pytest.raises(Forbidden, match="it asks for the login over plain http"):
            place.client(insecure=False).manifest()
        assert plain.count() == 0
        # Without a login there is nothing to lose.
        assert place.client(insecure=False, credentials="").manifest()


@pytest.mark.parametrize("status", [302, 307, 308])
def test_an_identity_token_follows_no_redirect(place: Place, status: int) -> None:
    with WebServer() as other:
        other.handle("/token", lambda _: Answer(200, {}, b'{"token": "tok3n"}'))
        place.web.handle("/token", lambda _: Answer(status, {"Location": other.url("/token")}))
        place.wants(f'Bearer realm="{place.web.url("/token")}"', "Bearer tok3n")
        with pytest.raises(Forbidden, match="redirects to another place"):
            place.client(credentials=auth_file(place.host, identitytoken="1dentity")).manifest()
        assert other.count() == 0
    [request] = place.web.requests(path="/token")
    assert request.method == "POST"
    assert b"1dentity" in request.body


def test_a_registry_that_never_has_enough(place: Place) -> None:
    place.web.handle("/token", lambda _: Answer(200, {}, b'{"token": "tok3n"}'))
    place.wants(f'Bearer realm="{place.web.url("/token")}"')
    with pytest.raises(Forbidden, match="answered 401 again, to the login in the site's") as caught:
        place.client().manifest()
    assert not any(secret in str(caught.value.to_dict()) for secret in SECRETS)
    assert [place.web.count(path=path) for path in (MANIFEST_PATH, "/token")] == [2, 1]


def test_a_token_server_that_is_busy(place: Place, target: Target) -> None:
    place.web.handle("/token", lambda _: Answer(200, {}, b'{"access_token": "tok3n"}'))
    place.web.script("/token", [Status(429, retry_after="0")])
    place.wants(f'Bearer realm="{place.web.url("/token")}?x=s3cret"', "Bearer tok3n")
    assert place.client().manifest()
    [why] = target.retries()
    assert "/token is unavailable now: the server answered 429" in why
    assert not any(secret in why for secret in SECRETS)


@pytest.mark.parametrize("token", ['"a\\r\\nX: b"', '"\\u2026"', "5", "null", '""'])
def test_a_token_that_is_none(place: Place, token: str) -> None:
    place.web.handle("/token", lambda _: Answer(200, {}, b'{"token": %b}' % token.encode()))
    place.wants(f'Bearer realm="{place.web.url("/token")}"')
    with pytest.raises(Unreachable, match="gave no token"):
        place.client(tries=1).manifest()


def test_a_token_runs_out_while_a_blob_is_resumed(place: Place, target: Target) -> None:
    tokens = iter(["first", "second"])

    def give(_: Request) -> Answer:
        return Answer(200, {}, json.dumps({"token": next(tokens)}).encode())

    place.web.handle("/token", give)
    challenge = {"WWW-Authenticate": f'Bearer realm="{place.web.url("/token")}"'}
    place.web.script(
        BLOB_PATH,
        [Status(401, headers=challenge), Truncate(300_000), Status(401, headers=challenge)],
    )
    place.client().download(LAYER, target.sink)
    assert target.content() == BLOB
    seen = [
        (request.headers["Authorization"], request.headers["Range"], request.status)
        for request in place.web.requests(path=BLOB_PATH)
    ]
    rest = "bytes=300000-"
    assert seen == [
        (None, None, 401),
        ("Bearer first", None, 200),
        ("Bearer first", rest, 401),
        ("Bearer second", rest, 206),
    ]


@pytest.mark.parametrize("etags", [('"1"', '"2"'), ('W/"1"', 'W/"1"'), ("", "")])
def test_a_blob_needs_no_validator_to_be_resumed(
    place: Place, target: Target, etags: tuple[str, str]
) -> None:
    replicas = iter(etags)

    def answer(request: Request) -> Answer:
        resource = Resource(BLOB, next(replicas), "", True, "application/octet-stream", {})
        stop = None if "Range" in request.headers else Stop(300_000, "close")
        return replace(right_answer(request, resource), stop=stop)

    place.web.handle(BLOB_PATH, answer)
    place.client().download(LAYER, target.sink)
    assert target.content() == BLOB
    assert [request.status for request in place.web.requests(path=BLOB_PATH)] == [200, 206]


def test_a_blob_whose_parts_do_not_fit_is_fetched_anew(place: Place, target: Target) -> None:
    bodies = iter([bytes(len(BLOB)), BLOB, BLOB])
    stops = iter([Stop(300_000, "close"), None, None])

    def answer(request: Request) -> Answer:
        resource = Resource(next(bodies), "", "", True, "application/octet-stream", {})
        return replace(right_answer(request, resource), stop=next(stops))

    place.web.handle(BLOB_PATH, answer)
    place.client().download(LAYER, target.sink)
    assert target.content() == BLOB
    assert [request.status for request in place.web.requests(path=BLOB_PATH)] == [200, 206, 200]


def test_a_token_that_is_good_for_few_requests(place: Place) -> None:
    left, lock = Counter[str](), Lock()

    def give(_: Request) -> Answer:
        with lock:
            token = f"tok3n{len(left)}"
            left[token] = 2
        return Answer(200, {}, json.dumps({"token": token}).encode())

    def take(request: Request) -> Answer:
        token = request.headers["Authorization"] or ""
        with lock:
            left[token.removeprefix("Bearer ")] -= 1
            if left[token.removeprefix("Bearer ")] >= 0:
                return Answer(200, {}, BLOB)
        return Answer(401, challenge)

    challenge = {"WWW-Authenticate": f'Bearer realm="{place.web.url("/token")}"'}
    place.web.handle("/token", give)
    blobs = [Blob(f"{number:064}", len(BLOB)) for number in range(8)]
    for blob in blobs:
        place.web.handle(f"/v2/lab/x/blobs/sha256:{blob.sha256}", take)
    client = place.client()

    def fetch(blob: Blob) -> bytes:
        target = Target()
        client.download(blob, target.sink)
        return target.content()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch, blobs)) == {BLOB}


def test_basic_is_taken_where_there_is_a_choice_without_a_token_server(place: Place) -> None:
    place.wants('Negotiate, Basic realm="a, b", charset="UTF-8"', "Basic am86czNjcmV0")
    assert place.client().manifest()


def test_docker_hub_has_an_address_and_a_login_of_its_own(
    web: WebServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a proxy, the server is asked for what is at every host.
    monkeypatch.setenv("http_proxy", web.url())
    monkeypatch.setattr("hpcimg.sources.oci.auth._addresses", lambda _: ["203.0.113.1"])
    place = Place(web, connect)
    web.handle("/token", lambda _: Answer(200, {}, b'{"token": "tok3n"}'))
    path = "/v2/library/x/manifests/latest"
    place.wants('Bearer realm="http://auth.docker.io/token"', "Bearer tok3n", paths=(path,))
    credentials = auth_file("https://index.docker.io/v1/")
    assert connect("docker.io/library/x", credentials=credentials).manifest()
    hosts = [request.headers["Host"] for request in web.requests()]
    assert hosts == ["registry-1.docker.io", "auth.docker.io", "registry-1.docker.io"]
    assert web.requests(path="/token")[0].headers["Authorization"] == "Basic am86czNjcmV0"


def test_authorization_is_for_one_scheme_host_and_port() -> None:
    assert origin("http://h/a") == origin("http://h:80/b")
    for other in ("https://h/", "http://h:81/", "http://i/", "http://["):
        assert origin("http://h/") != origin(other)


def test_a_refusal_and_a_redirect_cost_no_connection(
    place: Place, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, made = connection.create_connection, []
    monkeypatch.setattr(
        connection, "create_connection", lambda *a, **k: made.append(a) or connect(*a, **k)
    )
    place.wants('Basic realm="x"', "Basic am86czNjcmV0")
    place.web.script(BLOB_PATH, [Redirect(BLOB_PATH)])
    client = place.client()
    assert client.manifest()
    client.download(LAYER, target.sink)
    assert [answer.status for answer in place.web.requests()] == [401, 200, 302, 200]
    assert len(made) == 1


def test_no_cookie_is_kept(place: Place) -> None:
    answer = Answer(200, {"Set-Cookie": "a=b; Path=/"}, MANIFEST)
    place.web.handle(MANIFEST_PATH, lambda _: answer)
    client = place.client()
    assert client.manifest()
    assert client.manifest()
    assert [request.headers["Cookie"] for request in place.web.requests()] == [None, None]


@pytest.mark.parametrize("status", [403, 404, 429])
def test_a_login_for_what_is_hidden_goes_nowhere_else(place: Place, status: int) -> None:
    with WebServer() as other:
        challenge = {"WWW-Authenticate": f'Bearer realm="{other.url("/token")}"'}
        other.handle("/v2/", lambda _: Answer(401, challenge))
        place.web.handle("/v2/", lambda _: Answer(307, {"Location": other.url("/v2/")}))
        place.web.handle(MANIFEST_PATH, lambda _: Answer(status))
        with pytest.raises((Forbidden, NotFound, Unreachable), match=str(status)):
            place.client(tries=1).manifest()
        # Nor where the registry itself sends to one that may not be asked.
        realm = 'Bearer realm="http://169.254.169.254/token"'
        place.web.handle("/v2/", lambda _: Answer(401, {"WWW-Authenticate": realm}))
        with pytest.raises((Forbidden, Unreachable)):
            place.client(tries=1).manifest()
        sent = [r.headers["Authorization"] for r in (*place.web.requests(), *other.requests())]
        assert set(sent) == {None}


def test_what_a_redirect_leads_to_is_asked_without_a_login(place: Place, target: Target) -> None:
    with WebServer() as storage:
        place.web.handle(BLOB_PATH, lambda _: Answer(307, {"Location": storage.url("/blob")}))
        with pytest.raises(NotFound):
            place.client().download(LAYER, target.sink)
        assert place.web.count(path="/v2/") == 0
