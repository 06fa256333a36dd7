"""What a 401 asks for, and where a login may be sent."""

from __future__ import annotations

import time

import pytest

from hpcimg.sources.oci.challenges import parse_challenges, why_not


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", {}),
        ("Basic", {"basic": {}}),
        ('Basic realm="x"', {"basic": {"realm": "x"}}),
        (
            'Bearer realm="https://h/token",service="a, b",scope="repository:x:pull,push"',
            {
                "bearer": {
                    "realm": "https://h/token",
                    "service": "a, b",
                    "scope": "repository:x:pull,push",
                }
            },
        ),
        (
            "BEARER Realm = https://h/t , SERVICE=s",
            {"bearer": {"realm": "https://h/t", "service": "s"}},
        ),
        (
            'Bearer realm="r",service="s", Basic realm="b"',
            {"bearer": {"realm": "r", "service": "s"}, "basic": {"realm": "b"}},
        ),
        ("Negotiate, Basic realm=x", {"negotiate": {}, "basic": {"realm": "x"}}),
        (r'Basic realm="a \"b\" \\"', {"basic": {"realm": r'a "b" \\'[:-1]}}),
        ('Basic realm="open', {"basic": {"realm": ""}}),
        ("Bearer realm=", {"bearer": {"realm": ""}}),
        ('Basic realm="1",realm="2"', {"basic": {"realm": "1"}}),
        ("realm=x", {}),
        ("\x00\xff", {}),
    ],
)
def test_challenges(header: str, found: dict[str, dict[str, str]]) -> None:
    assert parse_challenges(header) == found


@pytest.mark.parametrize("unit", [" ", ",", '"', "a ", "a=", 'a="', "\\", 'a="\\'])
def test_a_long_one_takes_no_time(unit: str) -> None:
    began = time.monotonic()
    parse_challenges("Bearer " + unit * (65536 // len(unit)))
    assert time.monotonic() - began < 10


HOSTS = {
    "registry.example.org": ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
    "auth.example.org": ["93.184.215.15"],
    "registry.internal": ["10.1.2.3"],
    "auth.internal": ["192.168.7.7"],
    "both.example.org": ["93.184.215.16", "127.0.0.1"],
    "mapped.example.org": ["::ffff:169.254.169.254"],
    "ula.internal": ["fd00::7"],
    "scoped.internal": ["fe80::1%eth0"],
    "localhost": ["127.0.0.1", "::1"],
}


def resolve(host: str) -> list[str]:
    return HOSTS.get(host, [host] if host[0].isdigit() or ":" in host else [])


@pytest.mark.parametrize(
    ("registry", "realm", "why"),
    [
        ("https://registry.example.org", "https://auth.example.org/token", ""),
        ("https://registry.example.org", "https://registry.example.org/token", ""),
        ("https://registry.example.org", "https://behind-the-proxy.example.org/", ""),
        ("https://registry.internal", "https://auth.internal/token", ""),
        ("https://registry.internal", "https://ula.internal/token", ""),
        ("https://registry.internal", "https://auth.example.org/token", ""),
        ("https://registry.internal", "http://registry.internal/token", "plain http"),
        ("http://registry.internal", "http://auth.internal/token", ""),
        ("http://localhost:5000", "http://127.0.0.1:5001/token", ""),
        ("http://localhost:5000", "http://auth.internal/token", ""),
        ("http://localhost:5000", "http://169.254.169.254/token", "link-local"),
        ("https://registry.example.org", "https://auth.internal/token", "private"),
        ("https://registry.example.org", "https://10.0.0.1/token", "private"),
        ("https://registry.example.org", "https://100.64.0.1/token", "private"),
        ("https://registry.example.org", "https://localhost/token", "loopback"),
        ("https://registry.example.org", "https://0.0.0.0/token", "loopback"),
        ("https://registry.example.org", "https://[::1]/token", "loopback"),
        ("https://registry.example.org", "https://both.example.org/token", "loopback"),
        ("https://registry.example.org", "https://mapped.example.org/token", "link-local"),
        ("https://registry.example.org", "https://scoped.internal/token", "link-local"),
        ("https://registry.internal", "https://169.254.169.254/token", "link-local"),
        ("https://registry.internal", "https://localhost/token", "loopback"),
        ("https://registry.example.org", "https:///token", "no http address"),
        ("https://registry.example.org", "file:///etc/passwd", "no http address"),
    ],
)
def test_where_a_login_may_be_sent(registry: str, realm: str, why: str) -> None:
    found = why_not(realm, registry, secret=True, resolve=resolve)
    assert (why in found) if why else (found == "")


def test_without_a_login_plain_http_will_do() -> None:
    where = "http://auth.example.org/", "https://registry.example.org"
    assert why_not(*where, secret=True, resolve=resolve)
    assert why_not(*where, secret=False, resolve=resolve) == ""
