"""Logins to real registries, with Basic authentication and with tokens that expire."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import requests

from hpcimg.errors import ConfigError, Forbidden, Unreachable
from hpcimg.fetch.contract import Blob
from hpcimg.sources.oci.manifests import hex_of
from tests.parts.daemon import wait_until
from tests.parts.registry import MANIFEST, PASSWORD, Registry
from tests.parts.registryclient import Connect, Target, auth_file
from tests.parts.tokenserver import TokenServer, basic

pytestmark = pytest.mark.skipif(Registry.missing() != "", reason=Registry.missing())

BLOB = os.urandom(3 << 20)


@pytest.fixture(scope="module")
def with_basic() -> Iterator[Registry]:
    with Registry(basic=True) as registry:
        yield registry


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer() as tokens:
        yield tokens


@pytest.fixture
def with_tokens(tokens: TokenServer) -> Iterator[Registry]:
    with Registry(tokens=tokens) as registry:
        yield registry


def push(registry: Registry, *blobs: bytes) -> list[Blob]:
    """Push an image of these layers as lab/x:1; return them as manifests name them."""
    empty = registry.push_blob("lab/x", io.BytesIO(b"{}"))
    layers = [
        {
            "mediaType": "application/octet-stream",
            "size": len(blob),
            "digest": registry.push_blob("lab/x", io.BytesIO(blob)),
        }
        for blob in blobs
    ]
    config = {"mediaType": "application/json", "size": 2, "digest": empty}
    content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    registry.push_manifest("lab/x", "1", content)
    return [
        Blob(hex_of(str(layer["digest"])), len(blob))
        for layer, blob in zip(layers, blobs, strict=True)
    ]


def test_basic(with_basic: Registry, connect: Connect, target: Target) -> None:
    [blob] = push(with_basic, BLOB)
    registry = connect(f"{with_basic.host}/lab/x:1", credentials=auth_file(with_basic.host))
    manifest = registry.manifest()
    assert manifest
    assert hex_of(manifest.content["layers"][0]["digest"]) == blob.sha256
    registry.download(blob, target.sink)
    assert target.content() == BLOB


def test_basic_without_and_with_a_wrong_login(with_basic: Registry, connect: Connect) -> None:
    push(with_basic, BLOB)
    host = with_basic.host
    with pytest.raises(Forbidden, match="requires a login, without a login"):
        connect(f"{host}/lab/x:1").manifest()
    wrong = auth_file(host, username="jo", password="no-such-pass")
    with pytest.raises(Forbidden, match="answered 401 again, to the login in the site's") as caught:
        connect(f"{host}/lab/x:1", credentials=wrong).manifest()
    assert "no-such-pass" not in repr(caught.value) + str(caught.value)
    with pytest.raises(Forbidden, match="without a login"):
        connect(f"{host}/lab/x:1", credentials=auth_file("other.example.org")).manifest()
    with pytest.raises(ConfigError, match=rf"\[registry {host}\] auth_file.*not a JSON object"):
        connect(f"{host}/lab/x:1", credentials=f"not: {PASSWORD}").manifest()


@pytest.mark.parametrize("fields", [{}, {"identitytoken": "1dentity"}])
def test_a_token_for_a_login(
    tokens: TokenServer,
    with_tokens: Registry,
    connect: Connect,
    target: Target,
    fields: dict[str, str],
) -> None:
    [blob] = push(with_tokens, BLOB)
    credentials = auth_file(with_tokens.host, **fields)
    registry = connect(f"{with_tokens.host}/lab/x:1", credentials=credentials)
    assert registry.manifest()
    registry.download(blob, target.sink)
    assert target.content() == BLOB
    [request] = tokens.requests()
    assert request.method == ("POST" if fields else "GET")
    assert request.headers.get("Authorization", "") == ("" if fields else basic("jo", "s3cret"))


def test_a_registry_token_is_used_as_it_is(
    tokens: TokenServer, with_tokens: Registry, connect: Connect
) -> None:
    push(with_tokens, BLOB)
    host = with_tokens.host
    good = auth_file(host, registrytoken=tokens.token("lab/x", "pull"))
    assert connect(f"{host}/lab/x:1", credentials=good).manifest()
    bad = auth_file(host, registrytoken=tokens.token("lab/other", "pull"))
    with pytest.raises(Forbidden, match="answered 401 again"):
        connect(f"{host}/lab/x:1", credentials=bad).manifest()
    assert tokens.requests() == []


def test_who_has_no_right_to_it(
    tokens: TokenServer, with_tokens: Registry, connect: Connect
) -> None:
    push(with_tokens, BLOB)
    host = with_tokens.host
    with pytest.raises(Forbidden, match="answered 401 again, without a login"):
        connect(f"{host}/lab/x:1").manifest()
    for fields in ({"username": "jo", "password": "wr0ng"}, {"identitytoken": "wr0ng"}):
        with pytest.raises(Forbidden, match="/token answered 401, to the login in") as caught:
            connect(f"{host}/lab/x:1", credentials=auth_file(host, **fields)).manifest()
        assert "wr0ng" not in str(caught.value)


def runs_out(registry: Registry, tokens: TokenServer) -> None:
    """Wait until the last token is too old for the registry."""
    headers = {"Authorization": f"Bearer {tokens.given[-1]}"}

    def refused() -> bool:
        url = f"{registry.url}/v2/lab/x/tags/list"
        return requests.get(url, headers=headers, timeout=10).status_code == 401

    wait_until(refused, what="the end of a token")


def test_a_token_that_runs_out_between_two_blobs(
    tokens: TokenServer, with_tokens: Registry, connect: Connect, target: Target
) -> None:
    first, second = push(with_tokens, b"first", BLOB)
    tokens.lifetime_s = 2
    registry = connect(f"{with_tokens.host}/lab/x:1", credentials=auth_file(with_tokens.host))
    assert registry.manifest()
    registry.download(first, Target().sink)
    runs_out(with_tokens, tokens)
    registry.download(second, target.sink)
    assert target.content() == BLOB
    assert len(tokens.given) == 2
    assert target.retries() == []


def test_a_token_that_runs_out_in_the_middle_of_a_blob(
    tokens: TokenServer,
    with_tokens: Registry,
    connect: Connect,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [blob] = push(with_tokens, BLOB)
    tokens.lifetime_s = 2
    write = target.sink.write

    def cut_once(data: bytes | memoryview) -> None:
        write(data)
        if target.sink.position > len(BLOB) // 2:
            monkeypatch.setattr(target.sink, "write", write)
            runs_out(with_tokens, tokens)
            raise Unreachable("the connection was cut")

    monkeypatch.setattr(target.sink, "write", cut_once)
    registry = connect(f"{with_tokens.host}/lab/x:1", credentials=auth_file(with_tokens.host))
    assert registry.manifest()
    registry.download(blob, target.sink)
    assert target.content() == BLOB
    assert len(tokens.given) == 2
    answered = [line.status for line in with_tokens.requests() if blob.sha256 in line.path]
    assert answered[-3:] == [200, 401, 206]
    assert target.retries() == ["the connection was cut"]


def test_threads_share_one_new_token(
    tokens: TokenServer, with_tokens: Registry, connect: Connect
) -> None:
    blobs = [os.urandom(200_000) for _ in range(8)]
    layers = push(with_tokens, *blobs)
    tokens.lifetime_s = 2
    registry = connect(f"{with_tokens.host}/lab/x:1", credentials=auth_file(with_tokens.host))
    assert registry.manifest()
    runs_out(with_tokens, tokens)
    tokens.lifetime_s = 300
    together = Barrier(len(blobs))

    def fetch(blob: Blob) -> bytes:
        target = Target()
        together.wait()
        registry.download(blob, target.sink)
        return target.content()

    with ThreadPoolExecutor(len(blobs)) as pool:
        assert list(pool.map(fetch, layers)) == blobs
    assert len(tokens.given) == 2
