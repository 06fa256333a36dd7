"""Addresses that users and servers cannot make a node connect to, and the site can."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from urllib3.util import connection

from hpcimg.errors import NotAllowed
from hpcimg.fetch.settings import Settings
from hpcimg.http.session import open_session, request
from tests.integration.checks import refused, staged
from tests.parts.node import Node
from tests.parts.webanswer import Answer
from tests.parts.webfaults import Redirect
from tests.parts.webserver import WebServer

PATH = "/x.sif"
NONE = "[policy]\nallow_addresses =\n"
METADATA = "http://169.254.169.254/latest/meta-data/"
SAID = "is at an address that this site does not allow"


@pytest.fixture
def strict(node: Node) -> Node:
    """A node whose site allows no additional network."""
    node.configure(NONE)
    return node


def name(node: Node, *hosts: str, more: str = "") -> None:
    """Let the site name these hosts."""
    node.configure("".join([NONE, more, *(f"[registry {h}]\ninsecure = yes\n" for h in hosts)]))


def own(web: WebServer) -> str:
    return f"127.0.0.1:{web.port}"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.0.0.2", "0.0.0.0", "[::ffff:7f00:1]"]
)
def test_loopback_is_refused(strict: Node, web: WebServer, url: str, host: str) -> None:
    task = refused(strict, 1, f"container:{url.replace('127.0.0.1', host)}", "NotAllowed", SAID)
    assert "a loopback address" in task.printed
    assert "[policy] allow_addresses" in task.printed
    assert strict.record(1)["class"] == "user"
    assert web.count() == 0


@pytest.mark.parametrize(
    "uri", [METADATA, "docker://10.0.0.5/x/y", "oras://192.168.0.1:5000/x/y", "https://[fd00::1]/x"]
)
def test_others_are_refused_at_once(strict: Node, uri: str) -> None:
    began = time.monotonic()
    refused(strict, 1, f"container:{uri}", "NotAllowed", SAID)
    assert time.monotonic() - began < 8  # no connection was waited for


def test_by_default_what_a_job_can_reach_too_is_allowed(
    node: Node, url: str, sif: bytes, web: WebServer
) -> None:
    staged(node, 1, f"container:{url}", sif)
    refused(node, 2, f"container:{METADATA}", "NotAllowed", SAID)
    web.script("/away", [Redirect(METADATA)])
    refused(node, 3, f"container:{web.url('/away')}", "NotAllowed", SAID)


def test_allowed_networks(node: Node, url: str, sif: bytes) -> None:
    node.configure("[policy]\nallow_addresses = 10.0.0.0/8, 127.0.0.0/8\n")
    staged(node, 1, f"container:{url}", sif)


@pytest.mark.parametrize("where", ["registry", "alias", "allow"])
def test_what_the_site_names_is_allowed(
    strict: Node, web: WebServer, url: str, sif: bytes, where: str
) -> None:
    said = {
        "registry": f"[registry {own(web)}]\n",
        "alias": f"[alias]\nx = {url}\n",
        "allow": f"[policy]\nallow = {web.url('/')}*\n",
    }
    strict.configure(NONE)
    (strict.directory / "conf.d" / "z.conf").write_text(said[where])
    staged(strict, 1, f"container:{url}", sif)


def test_another_port_of_it_is_not(node: Node, url: str) -> None:
    name(node, "127.0.0.1:1")
    refused(node, 1, f"container:{url}", "NotAllowed", SAID)


def test_a_redirect_leads_no_further(node: Node, web: WebServer) -> None:
    name(node, own(web))
    with WebServer() as other:
        for number, target in enumerate((METADATA, other.url("/secret"))):
            web.script(f"/{number}", [Redirect(target)])
            refused(node, number, f"container:{web.url(f'/{number}')}", "NotAllowed", SAID)
        assert other.count() == 0


def test_a_token_server_is_looked_at_too(node: Node, web: WebServer) -> None:
    name(node, own(web))
    with WebServer() as other:
        realm = f'Bearer realm="{other.url("/token")}",service="s"'
        unknown = Answer(401, {"WWW-Authenticate": realm})
        web.handle("/v2/x/y/manifests/1", lambda _: unknown)
        refused(node, 1, f"container:oras://{own(web)}/x/y:1", "NotAllowed", SAID)
        assert other.count() == 0


def test_the_services_of_the_site_are_its_own(node: Node, web: WebServer, sif: bytes) -> None:
    node.configure(f"{NONE}[s3]\nurl = {web.url()}\n[static pages]\nurl = {web.url('/pages')}\n")
    web.put("/bucket/x.sif", sif)
    staged(node, 1, "container:s3://bucket/x.sif", sif)
    refused(node, 2, "container:pages://x/y", "NotFound")


def test_a_certificate_is_for_the_name(node: Node, sif: bytes) -> None:
    with WebServer(tls=True) as web:
        web.certificate.parent.chmod(0o755)
        web.put(PATH, sif)
        url = web.url(PATH).replace("127.0.0.1", "localhost")
        environment = {**node.environment(1, f"container:{url}")}
        environment["SSL_CERT_FILE"] = str(web.certificate)
        node.environment = lambda *_: environment  # type: ignore[method-assign]
        staged(node, 1, f"container:{url}", sif)


# In this process


def settings(**fields: Any) -> Settings:
    return Settings(1, time.monotonic() + 30, 5.0, 5.0, **fields)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What each look-up of a name finds, one after the other."""
    known: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host: str, port: object, *rest: Any, **more: Any) -> list[Any]:
        if host not in known:
            return real(host, port, *rest, **more)
        return [at for address in known[host].pop(0) for at in real(address, port, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def get(url: str, given: Settings) -> int:
    with open_session(given) as session, request(session, url, given) as response:
        return response.status


def test_what_was_looked_at_is_connected_to(
    web: WebServer, names: dict[str, list[list[str]]]
) -> None:
    web.put(PATH, b"x")
    names["rebinds.example.org"] = [["127.0.0.1"], ["127.0.0.2"]]
    url = f"http://rebinds.example.org:{web.port}{PATH}"
    assert get(url, settings(networks=("127.0.0.1",))) == 200
    with pytest.raises(NotAllowed, match=r"127\.0\.0\.2 is a loopback address"):
        get(url, settings(networks=("127.0.0.1",)))
    assert web.requests()[0].headers["Host"] == f"rebinds.example.org:{web.port}"


def test_of_several_addresses_the_allowed_ones_are_tried(
    web: WebServer, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    web.put(PATH, b"x")
    names["many.example.org"] = [["169.254.169.254", "127.0.0.3", "127.0.0.2", "127.0.0.1"]]
    connect, tried = connection.create_connection, []

    def create(at: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        tried.append(at[0])
        if at[0] == "127.0.0.2":
            raise TimeoutError
        return connect(at, *rest, **more)

    monkeypatch.setattr(connection, "create_connection", create)
    url = f"http://many.example.org:{web.port}{PATH}"
    assert get(url, settings(networks=("127.0.0.0/30",))) == 200
    assert tried == ["127.0.0.3", "127.0.0.2", "127.0.0.1"]


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "127.1", "localhost", "a.localhost.", "[::1]", "169.254.169.254"]
)
def test_through_a_proxy_what_is_written_is_looked_at(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in [name for name in os.environ if name.lower() == "no_proxy"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", web.url())
    web.put(PATH, b"x")
    assert get(f"http://images.example.org{PATH}", settings()) == 200
    with pytest.raises(NotAllowed):
        get(f"http://{host}{PATH}", settings())
    assert get(f"http://{host}{PATH}", settings(site_hosts=(host.rstrip("."),))) == 200
    assert web.count() == 2


def test_a_file_of_the_node_is_no_place_to_be_sent_to(tmp_path: Path, web: WebServer) -> None:
    web.script(PATH, [Redirect(f"file://{tmp_path}")])
    with pytest.raises(Exception, match="redirects to an address that is not http"):
        get(web.url(PATH), settings(networks=("127.0.0.1",)))
