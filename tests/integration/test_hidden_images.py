"""Registries that hide images from anonymous users, or rate-limit them: which login is tried.

A web server plays them: Debian's registry answers 401 to all such questions.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.checks import refused, staged
from tests.parts.registry import MANIFEST, PASSWORD, SIF_CONFIG, SIF_LAYER, USER
from tests.parts.registryclient import auth_file
from tests.parts.tokenserver import basic
from tests.parts.users import NodeWithUsers
from tests.parts.webanswer import Answer, Request
from tests.parts.webserver import WebServer

MISSING = NodeWithUsers.missing()
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)

USERS = {"hpcimg-jo": 3_000_001, "hpcimg-al": 3_000_002}
JO, AL = USERS.values()
LOGIN = basic(USER, PASSWORD)
MANIFEST_PATH = "/v2/lab/x/manifests/1"


class Hiding:
    """A registry with lab/x:1 for who has the login of USER.

    `anonymous` is what others are answered, where `lets_in` of their questions were not answered
    so; `asks` whether all that come without a token are asked for one, or only at /v2/.
    """

    def __init__(self, web: WebServer, sif: bytes) -> None:
        self.web = web
        self.host = f"127.0.0.1:{web.port}"
        self.comment = f"container:oras://{self.host}/lab/x:1"
        self.anonymous = Answer(404)
        self.asks = False
        self.no_token = 0  # what the token server answers them, 0 for a token
        self.refused = 0  # how many of the anonymous were
        self.refusals = 1 << 30
        digest = f"sha256:{hashlib.sha256(sif).hexdigest()}"
        layer = {"mediaType": SIF_LAYER, "size": len(sif), "digest": digest}
        config = {"mediaType": SIF_CONFIG, "size": 2, "digest": f"sha256:{'0' * 64}"}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        self._content = {
            MANIFEST_PATH: json.dumps(manifest).encode(),
            f"/v2/lab/x/blobs/{digest}": sif,
        }
        for path in (*self._content, "/v2/"):
            web.handle(path, self._answer)
        web.handle("/token", self._token)

    def _answer(self, request: Request) -> Answer:
        token = request.headers["Authorization"]
        if request.path == "/v2/" or (self.asks and not token):
            challenge = f'Bearer realm="{self.web.url("/token")}",service="s"'
            return Answer(401, {"WWW-Authenticate": challenge})
        if token != "Bearer for-jo":
            self.refused += 1
            if self.refused <= self.refusals:
                return self.anonymous
        return Answer(200, {}, self._content[request.path])

    def _token(self, request: Request) -> Answer:
        login = request.headers["Authorization"]
        if login not in (None, LOGIN):
            return Answer(401)
        if self.no_token and not login:
            return Answer(self.no_token)
        return Answer(200, {}, json.dumps({"token": "for-jo" if login else "for-all"}).encode())


@pytest.fixture
def hiding(web: WebServer, sif: bytes) -> Hiding:
    return Hiding(web, sif)


@pytest.fixture
def users(open_directory: Path, hiding: Hiding) -> Iterator[NodeWithUsers]:
    node = NodeWithUsers(open_directory, USERS)
    node.configure(f"[registry {hiding.host}]\ninsecure = yes\n")
    yield node
    assert PASSWORD not in node.log()


def jobs_of(node: NodeWithUsers, uid: int) -> NodeWithUsers:
    node.uid = uid
    return node


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("status", [403, 404, 429])
def test_who_has_logged_in_is_served(
    users: NodeWithUsers, hiding: Hiding, sif: bytes, status: int, asks: bool
) -> None:
    hiding.asks, hiding.anonymous = asks, Answer(status, {"Retry-After": "3600"})
    error = {403: "Forbidden", 404: "NotFound", 429: "Unreachable"}[status]
    # What others are told, and what is remembered of it, is for who has no login.
    refused(jobs_of(users, AL), 1, hiding.comment, error, f"the server answered {status}")
    users.keep("hpcimg-jo", ".docker/config.json", auth_file(hiding.host))
    task = staged(jobs_of(users, JO), 2, hiding.comment, sif, how="fetched")
    assert task.image.parent == users.cache / "users" / str(JO)
    refused(jobs_of(users, AL), 3, hiding.comment, error)


def test_without_a_login_it_is_asked_once(users: NodeWithUsers, hiding: Hiding) -> None:
    users.keep("hpcimg-jo", ".docker/config.json", auth_file("registry.example.org"))
    task = refused(users, 1, hiding.comment, "NotFound", "there is nothing at")
    assert "login" not in task.printed
    assert [request.path for request in hiding.web.requests()] == [MANIFEST_PATH]


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_token_server_that_gives_the_anonymous_nothing(
    users: NodeWithUsers, hiding: Hiding, sif: bytes, status: int
) -> None:
    hiding.asks, hiding.no_token = True, status
    refused(jobs_of(users, AL), 1, hiding.comment, "Forbidden", f"/token answered {status}")
    users.keep("hpcimg-jo", ".docker/config.json", auth_file(hiding.host))
    staged(jobs_of(users, JO), 2, hiding.comment, sif, how="fetched")


@pytest.mark.parametrize("password", ["", "0ld"])
def test_a_limit_is_waited_for_where_no_login_helps(
    users: NodeWithUsers, hiding: Hiding, sif: bytes, password: str
) -> None:
    if password:
        login = auth_file(hiding.host, username=USER, password=password)
        users.keep("hpcimg-jo", ".docker/config.json", login)
    hiding.refusals, hiding.anonymous = 1, Answer(429, {"Retry-After": str(int(time.time()) + 3)})
    began = time.time()
    task = staged(jobs_of(users, JO), 1, hiding.comment, sif, how="fetched")
    assert task.image.parent == users.cache / "images"
    assert time.time() - began >= 2
    assert hiding.web.count(path=MANIFEST_PATH) == 2
    assert "limits anonymous requests" in users.log()


@pytest.mark.parametrize("shared", ["yes", "no"])
def test_the_sites_login(users: NodeWithUsers, hiding: Hiding, sif: bytes, shared: str) -> None:
    path = users.directory / "site-login.json"
    path.write_text(auth_file(hiding.host))
    path.chmod(0o600)
    users.configure(
        f"[registry {hiding.host}]\ninsecure = yes\nauth_file = {path}\nshared = {shared}\n"
    )
    task = staged(jobs_of(users, AL), 1, hiding.comment, sif, how="fetched")
    assert (task.image.parent.name == "images") == (shared == "yes")


def test_where_the_login_is_no_better_it_says_so(users: NodeWithUsers, hiding: Hiding) -> None:
    users.keep("hpcimg-jo", ".docker/config.json", auth_file(hiding.host))
    comment = hiding.comment.removesuffix(":1") + ":2"
    for path in ("/v2/lab/x/manifests/2",):
        hiding.web.handle(path, lambda _: Answer(404))
    refused(
        jobs_of(users, JO), 1, comment, "NotFound", "404 Not Found, to the login in", "config.json"
    )
    users.keep("hpcimg-jo", ".docker/config.json", auth_file(hiding.host, auth="am86b2xk"))
    refused(jobs_of(users, JO), 2, hiding.comment, "Forbidden", "/token answered 401, to the login")


def test_a_mirror_that_hides_what_it_has(users: NodeWithUsers, hiding: Hiding, sif: bytes) -> None:
    """The site has a login for the mirror, and the registry does not have the image."""
    with WebServer() as origin:
        host = f"127.0.0.1:{origin.port}"
        path = users.directory / "mirror.json"
        path.write_text(auth_file(hiding.host))
        users.configure(
            f"[registry {host}]\ninsecure = yes\nmirrors = {hiding.host}\n"
            f"[registry {hiding.host}]\ninsecure = yes\nauth_file = {path}\n"
        )
        staged(jobs_of(users, AL), 1, f"container:oras://{host}/lab/x:1", sif, how="fetched")
        assert [r.headers["Authorization"] for r in origin.requests()] == [None]
