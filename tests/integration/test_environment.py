"""The variables for proxies and certificates that every tool knows, with every source."""

from __future__ import annotations

import ipaddress
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hpcimg.fetch.settings import Settings
from hpcimg.http import connections
from hpcimg.http.session import open_session, request
from tests.integration.checks import refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.proxy import Proxy
from tests.parts.publish import in_hub, in_library, in_registry, in_static_registry
from tests.parts.webfaults import Redirect
from tests.parts.webserver import WebServer

PATH = "/x.sif"


class NodeWithVariables(Node):
    """A node whose hooks have some more in their environment."""

    variables: Mapping[str, str]

    def environment(self, job: int | str, comment: str | None = None) -> dict[str, str]:
        return {**super().environment(job, comment), **self.variables}


@pytest.fixture
def node(tmp_path: Path) -> NodeWithVariables:
    return NodeWithVariables(tmp_path)


@pytest.fixture
def secure() -> Iterator[WebServer]:
    """A server whose certificate this host does not know."""
    with WebServer(tls=True) as web:
        # The account that fetches has to read it.
        web.certificate.parent.chmod(0o755)
        yield web


def published(web: WebServer, node: Node, make_sif: MakeSif) -> dict[str, bytes]:
    """Let a server be of every kind, with an image on each; return these by their references."""
    host, url = f"127.0.0.1:{web.port}", web.url()
    sections = {
        "library": f"url = {url}",
        "shub": f"url = {url}",
        "s3": f"url = {url}",
        "swift": f"url = {url}/v1/AUTH_lab",
        "static pages": f"url = {url}/pages",
        f"registry {host}": f"insecure = {'yes' if url.startswith('http:') else 'no'}",
    }
    node.configure("".join(f"[{name}]\n{line}\n" for name, line in sections.items()))
    ways = {
        web.url(PATH): lambda sif: web.put(PATH, sif),
        f"docker://{host}/lab/x:1": lambda sif: in_registry(web, "lab/x", "1", sif),
        f"oras://{host}/lab/y:1": lambda sif: in_registry(web, "lab/y", "1", sif),
        "library://lab/tools/x:1": lambda sif: in_library(web, "lab/tools/x:1", sif),
        "shub://lab/x:1": lambda sif: in_hub(web, "lab/x:1", sif, "1"),
        "pages://lab/x:1": lambda sif: in_static_registry(web, "/pages/lab/x/manifests/1/", sif),
        "s3://bucket/x.sif": lambda sif: web.put("/bucket/x.sif", sif, etag='"1"'),
        "swift://images/x.sif": lambda sif: web.put("/v1/AUTH_lab/images/x.sif", sif, etag='"1"'),
    }
    made = {}
    for reference, put in ways.items():
        made[reference] = make_sif()
        put(made[reference])
    return made


def one_of(images: dict[str, bytes]) -> dict[str, bytes]:
    """Return the image on the web server: all sources read the variables at one place.

    So every source is tried with one spelling, and every spelling with one source.
    """
    return dict([next(iter(images.items()))])


# Proxies


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    if missing := Proxy.missing():
        pytest.skip(missing)
    with Proxy() as proxy:
        yield proxy


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_http_through_a_proxy(
    node: NodeWithVariables, web: WebServer, proxy: Proxy, make_sif: MakeSif, name: str
) -> None:
    node.variables = {name: proxy.url}
    images = published(web, node, make_sif)
    images = images if name == "http_proxy" else one_of(images)
    staged(node, 1, " ".join(f"container:{uri}" for uri in images), *images.values())
    assert {"tinyproxy" in request.headers.get("Via", "") for request in web.requests()} == {True}


def test_https_through_a_proxy(
    node: NodeWithVariables, secure: WebServer, proxy: Proxy, make_sif: MakeSif
) -> None:
    node.variables = {"https_proxy": proxy.url, "REQUESTS_CA_BUNDLE": str(secure.certificate)}
    server = ("CONNECT", f"127.0.0.1:{secure.port}")
    images = published(secure, node, make_sif)
    for job, (uri, data) in enumerate(images.items(), start=1):
        before = proxy.requests().count(server)
        staged(node, job, f"container:{uri}", data)
        assert proxy.requests().count(server) > before, uri


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_what_is_asked_without_the_proxy(
    node: NodeWithVariables, web: WebServer, proxy: Proxy, make_sif: MakeSif, name: str
) -> None:
    node.variables = {"http_proxy": proxy.url, name: "localhost,127.0.0.1"}
    images = published(web, node, make_sif)
    images = images if name == "no_proxy" else one_of(images)
    staged(node, 1, " ".join(f"container:{uri}" for uri in images), *images.values())
    assert [request for request in web.requests() if "Via" in request.headers] == []


@pytest.mark.parametrize("secured", [False, True])
def test_a_signed_address_goes_through_a_proxy_as_it_is(
    node: NodeWithVariables,
    web: WebServer,
    secure: WebServer,
    proxy: Proxy,
    sif: bytes,
    secured: bool,
) -> None:
    server, signed = secure if secured else web, "/%2fx%7e.sif?signature=a%2bb%2F"
    certificate = str(secure.certificate)
    node.variables = {"all_proxy": f"127.0.0.1:{proxy.port}", "REQUESTS_CA_BUNDLE": certificate}
    server.put("/%2fx%7e.sif", sif)
    server.script("/x.sif", [Redirect(signed)])
    staged(node, 1, f"container:{server.url('/x.sif')}", sif)
    request = server.requests()[-1]
    assert f"{request.path}?{request.query}" == signed


@pytest.mark.parametrize("proxy_url", ["nonsense://127.0.0.1", "http://us:s3cret@"])
def test_a_proxy_that_is_none(node: NodeWithVariables, url: str, proxy_url: str) -> None:
    node.variables = {"http_proxy": proxy_url}
    refused(node, 1, f"container:{url}", "ConfigError", "cannot be used", "http_proxy")
    assert "s3cret" not in node.log()


def test_a_proxy_that_is_down(node: NodeWithVariables, url: str) -> None:
    node.configure("[stage]\ndeadline = 6s\n")
    node.variables = {"http_proxy": "http://127.0.0.1:1"}
    assert node.stage(1, f"container:{url}").code == 1
    assert "Unable to connect to proxy" in node.log() or "Connection refused" in node.log()


# Certificates


def test_a_certificate_that_nobody_vouches_for(
    node: NodeWithVariables, secure: WebServer, make_sif: MakeSif
) -> None:
    node.variables = {}
    for job, uri in enumerate(published(secure, node, make_sif), start=1):
        refused(node, job, f"container:{uri}", "Forbidden", "cannot be trusted", "certificate")
        assert node.record(job)["class"] == "user"
    assert secure.count() == 0


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_that_the_node_trusts(
    node: NodeWithVariables, secure: WebServer, make_sif: MakeSif, name: str
) -> None:
    node.variables = {name: str(secure.certificate)}
    images = published(secure, node, make_sif)
    images = images if name == "SSL_CERT_FILE" else one_of(images)
    staged(node, 1, " ".join(f"container:{uri}" for uri in images), *images.values())
    # The same server by a name that the certificate does not have.
    mapped = str(ipaddress.ip_address("::ffff:7f00:1"))  # Python 3.13 writes it otherwise
    other = secure.url(PATH).replace("127.0.0.1", "[::ffff:7f00:1]")
    refused(node, 2, f"container:{other}", "Forbidden", "cannot be trusted", mapped)


@pytest.mark.parametrize("through_proxy", [False, True])
def test_a_bundle_that_is_missing(
    node: NodeWithVariables, secure: WebServer, proxy: Proxy, sif: bytes, through_proxy: bool
) -> None:
    missing = {"REQUESTS_CA_BUNDLE": "/no/such/file"}
    node.variables = {**missing, "https_proxy": proxy.url} if through_proxy else missing
    uri = f"container:{secure.put(PATH, sif)}"
    refused(node, 1, uri, "ConfigError", "No such file", "REQUESTS_CA_BUNDLE")


def test_authorities_are_read_once(
    secure: WebServer, sif: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = secure.put(PATH, sif)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secure.certificate))
    read = connections._trusting.cache_info().misses
    settings = Settings(1, time.monotonic() + 30, 5.0, 5.0, networks=("127.0.0.0/8",))
    for _ in range(3):
        with open_session(settings) as session, request(session, url, settings) as response:
            assert response.status == 200
    assert connections._trusting.cache_info().misses == read + 1


def test_a_directory_of_certificates(
    node: NodeWithVariables, secure: WebServer, open_directory: Path, sif: bytes
) -> None:
    shutil.copy(secure.certificate, open_directory)
    subprocess.run(["openssl", "rehash", str(open_directory)], check=True, capture_output=True)
    node.variables = {"SSL_CERT_DIR": str(open_directory)}
    staged(node, 1, f"container:{secure.put(PATH, sif)}", sif)


def test_a_directory_counts_where_there_is_a_bundle_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on RHEL and its kin, where OpenSSL has a file of its own."""
    known = ssl.get_default_verify_paths()._replace(cafile=__file__, capath=str(tmp_path))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: known)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    assert connections._authorities() == (__file__, None)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert connections._authorities() == (None, str(tmp_path))
