"""Addresses on a mirror, and the headers that it gets."""

from __future__ import annotations

import pytest

from hpcimg.fetch.settings import Mirror
from hpcimg.http.mirrors import addresses, conditions

AT = "http://cache.example.org:8080/i"


@pytest.mark.parametrize(
    ("of", "url", "found"),
    [
        ("https://h.example.org", "https://h.example.org/a/b.sif", [f"{AT}/a/b.sif"]),
        ("https://h.example.org", "https://H.example.org:443/a%20b", [f"{AT}/a%20b"]),
        ("https://h.example.org:443/a", "https://h.example.org/a/b", [f"{AT}/b"]),
        ("https://h.example.org/a", "https://h.example.org/a", []),
        ("https://h.example.org/a", "https://h.example.org/ab/c", []),
        ("https://h.example.org", "https://h.example.org.evil.example.net/a", []),
        ("https://h.example.org", "https://h.example.org:8443/a", []),
        ("https://h.example.org", "http://h.example.org/a", []),
        ("https://h.example.org", "https://h.example.org/a?arch=amd64", [f"{AT}/a?arch=amd64"]),
        ("https://h.example.org", "https://h.example.org/a?arch=amd64&sig=1", []),
        ("https://h.example.org", "https://h.example.org/a?X-Amz-Signature=1", []),
        ("https://h.example.org", "https://h.example.org/a?secret", []),
        ("https://h.example.org", "https://me@h.example.org/a", []),
        ("https://h.example.org", "no address", []),
    ],
)
def test_addresses(of: str, url: str, found: list[str]) -> None:
    assert addresses(url, [Mirror("https://other.example.org", AT), Mirror(of, AT)]) == found


def test_mirrors_in_their_order() -> None:
    mirrors = [Mirror("https://h.example.org", at) for at in (AT, "http://second.example.org")]
    assert addresses("https://h.example.org/x", mirrors) == [
        f"{AT}/x",
        "http://second.example.org/x",
    ]


def test_what_a_mirror_is_told() -> None:
    said = {"If-None-Match": '"1"', "Authorization": "AWS4 x", "X-Auth-Token": "y", "Cookie": "z"}
    assert conditions(said) == {"If-None-Match": '"1"'}
