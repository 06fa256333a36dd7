"""The nginx mirror that sites get: one copy of an image leaves the origin, whoever asks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.integration.test_mirrors import conf
from tests.parts.nginxmirror import NginxMirror
from tests.parts.node import Node
from tests.parts.registry import MANIFEST, Registry
from tests.parts.registryclient import auth_file
from tests.parts.tokenserver import TokenServer
from tests.parts.webanswer import Answer, Request
from tests.parts.webserver import WebServer

pytestmark = [
    pytest.mark.skipif(NginxMirror.missing() != "", reason=NginxMirror.missing()),
    pytest.mark.skipif(Registry.missing() != "", reason=Registry.missing()),
]

NODES = 16
IMAGE = os.urandom(20 << 20)  # two slices and a half
DIGEST = f"sha256:{hashlib.sha256(IMAGE).hexdigest()}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "x.sif"
    path.write_bytes(IMAGE)
    return path


@pytest.fixture
def origin(image: Path) -> Iterator[Registry]:
    with Registry() as registry:
        registry.push_sif(image, "lab/x", "1")
        yield registry


def herd(url: str, **headers: str) -> list[requests.Response]:
    """GET an address from as many clients at once as there are nodes."""
    with ThreadPoolExecutor(NODES) as pool:
        return list(
            pool.map(lambda _: requests.get(url, headers=headers, timeout=60), range(NODES))
        )


def at(mirror: NginxMirror, origin: Registry, path: str) -> str:
    return f"{mirror.url}/v2/lab/x/{path}?ns={named(origin)}"


def named(registry: Registry) -> str:
    return registry.host.replace(":", "%3A")


def test_a_cold_herd_takes_one_image_from_the_registry(origin: Registry) -> None:
    with NginxMirror(registries={named(origin): origin.url}) as mirror:
        answers = herd(at(mirror, origin, f"blobs/{DIGEST}"))
        assert {answer.status_code for answer in answers} == {200}
        assert all(answer.content == IMAGE for answer in answers)
        sent = sum(request.sent_bytes for request in origin.blob_gets(DIGEST))
        assert sent <= 1.05 * len(IMAGE)
        manifests = herd(at(mirror, origin, "manifests/1"), Accept=MANIFEST)
        assert {answer.status_code for answer in manifests} == {200}
        asked = [r for r in origin.requests() if r.method == "GET" and "/manifests/" in r.path]
        assert len(asked) == 1


def test_a_registry_that_sends_to_an_object_store(origin: Registry, web: WebServer) -> None:
    store = web.put("/bucket/object", IMAGE, etag='"1"')
    path = f"/v2/lab/x/blobs/{DIGEST}"
    web.handle(path, lambda _: Answer(307, {"Location": f"{store}?signature=1"}))
    with NginxMirror(registries={"docker.io": web.url()}) as mirror:
        answers = herd(f"{mirror.url}{path}?ns=docker.io", Authorization="Bearer token")
        assert all(answer.content == IMAGE for answer in answers)
    fetched = [request for request in web.requests() if request.path == "/bucket/object"]
    assert sorted(request.headers["Range"] for request in fetched) == [
        "bytes=0-8388607", "bytes=16777216-25165823", "bytes=8388608-16777215",
    ]  # fmt: skip
    assert not any("Authorization" in request.headers for request in fetched)


def test_who_has_no_token_is_told_where_to_get_one(web: WebServer) -> None:
    """All at the same time: if refusals were not cached, waiting clients would get them in turn."""

    def ask(request: Request) -> Answer:
        if request.headers.get("Authorization") == "Bearer good":
            return Answer(200, {"Docker-Content-Digest": DIGEST}, b"{}")
        return Answer(401, {"WWW-Authenticate": 'Bearer realm="https://auth.example.org"'})

    web.handle("/v2/lab/x/manifests/1", ask)
    with NginxMirror(registries={"docker.io": web.url()}) as mirror:
        url = f"{mirror.url}/v2/lab/x/manifests/1?ns=docker.io"
        answers = herd(url)
        assert {answer.status_code for answer in answers} == {401}
        assert all("realm=" in answer.headers["WWW-Authenticate"] for answer in answers)
        assert web.count(path="/v2/lab/x/manifests/1") == 1
        # A token that is refused is nobody else's answer.
        assert requests.get(url, headers={"Authorization": "Bearer bad"}).status_code == 401
        answers = herd(url, Authorization="Bearer good")
        assert {answer.status_code for answer in answers} == {200}
        assert web.count(path="/v2/lab/x/manifests/1") == 3


def test_a_registry_and_a_server_that_the_site_does_not_name(origin: Registry) -> None:
    with NginxMirror(registries={"docker.io": origin.url}) as mirror:
        for path in ("v2/lab/x/manifests/1", "v2/lab/x/manifests/1?ns=quay.io", "h.example.org/x"):
            assert requests.get(f"{mirror.url}/{path}").status_code == 404
    assert origin.blob_gets() == []


def test_a_cold_herd_takes_one_file_from_a_web_server(web: WebServer) -> None:
    web.put("/lab/x%20y.sif", IMAGE, etag='"1"')
    with NginxMirror(servers={"images.example.org": web.url()}) as mirror:
        answers = herd(f"{mirror.url}/images.example.org/lab/x%20y.sif")
        assert all(answer.content == IMAGE for answer in answers)
        assert {answer.headers["ETag"] for answer in answers} == {'"1"'}
        part = requests.get(
            f"{mirror.url}/images.example.org/lab/x%20y.sif", headers={"Range": "bytes=5-9"}
        )
        assert (part.status_code, part.content) == (206, IMAGE[5:10])
    assert web.count(path="/lab/x%20y.sif") == 3


def test_a_file_without_an_etag_is_not_kept(web: WebServer) -> None:
    web.put("/x.sif", b"old")
    with NginxMirror(servers={"images.example.org": web.url()}) as mirror:
        assert requests.get(f"{mirror.url}/images.example.org/x.sif").content == b"old"
        web.put("/x.sif", b"new")
        assert requests.get(f"{mirror.url}/images.example.org/x.sif").content == b"new"


def test_in_front_of_a_pull_through_registry(origin: Registry) -> None:
    """It has the login, and lets a herd through. Asked for a part it fetches the whole twice."""
    with (
        Registry(mirror_of=origin.url) as proxy,
        NginxMirror(registries={named(origin): proxy.url}) as mirror,
    ):
        answers = herd(at(mirror, origin, f"blobs/{DIGEST}"))
        assert all(answer.content == IMAGE for answer in answers)
    sent = sum(request.sent_bytes for request in origin.blob_gets(DIGEST))
    assert sent <= 2.05 * len(IMAGE)


def test_nodes_that_have_it_as_their_mirror(tmp_path: Path, sif: bytes) -> None:
    (tmp_path / "x.sif").write_bytes(sif)
    nodes = []
    with Registry() as origin:
        origin.push_sif(tmp_path / "x.sif", "lab/x", "1")
        with NginxMirror(registries={named(origin): origin.url}) as mirror:
            for number in range(3):
                (tmp_path / str(number)).mkdir()
                nodes.append(Node(tmp_path / str(number), conf(origin, mirror.host)))
            with ThreadPoolExecutor() as pool:
                comment = f"container:oras://{origin.host}/lab/x:1"
                tasks = list(pool.map(lambda node: node.stage(1, comment), nodes))
        assert [task.image.read_bytes() == sif for task in tasks] == [True] * 3
        asked = [r.path.split("/")[-2] for r in origin.requests() if r.method == "GET"]
        assert sorted(asked) == ["blobs", "manifests"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose the site's logins are")
def test_a_login_that_the_site_has_for_the_mirror(tmp_path: Path, sif: bytes) -> None:
    """As with Docker Hub: the registry sends to a token server, through the mirror."""
    (tmp_path / "x.sif").write_bytes(sif)
    with TokenServer() as tokens, Registry(tokens=tokens) as origin:
        origin.push_sif(tmp_path / "x.sif", "lab/x", "1")
        with NginxMirror(registries={named(origin): origin.url}) as mirror:
            login = tmp_path / "login.json"
            login.write_text(auth_file(mirror.host))
            shared = f"[registry {mirror.host}]\nauth_file = {login}\nshared = yes\n"
            for number in range(2):
                (tmp_path / str(number)).mkdir()
                node = Node(tmp_path / str(number), conf(origin, mirror.host))
                more = node.directory / "conf.d/more.conf"
                more.write_text(shared)
                task = node.stage(1, f"container:oras://{origin.host}/lab/x:1")
                assert task.code == 0, (task.printed, node.log())
        assert len(origin.blob_gets()) == 1
