"""Addresses that servers send: which are valid, and to whom they lead."""

from __future__ import annotations

import pytest

from hpcimg.http.urls import address, to_the_letter


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("x?a=b", "https://base/d/x?a=b"),
        ("//other/x", "https://other/x"),
        ("http://Other:81/x", "http://Other:81/x"),
        ("https://[::1]/x", "https://[::1]/x"),
        ("https://b\xfccher.example/x", "https://b\xfccher.example/x"),
        ("https://us:s3cret@other/x@y", "https://other/x@y"),
        ("ftp://other/x", ""),
        ("https://other:x/", ""),
        ("https://a..b/", ""),
        # urllib3 would connect to the first host, and Python takes it for a part of the second.
        ("https://evil.example\\.base/", ""),
        ("https://evil.example:443\\.base/", ""),
    ],
)
def test_addresses(said: str, meant: str) -> None:
    assert address(said, base="https://base/d/y") == meant


@pytest.mark.parametrize(
    ("written", "rewritten", "sent"),
    [
        ("/a%2f?s=%2b~", "/a%2F?s=%2B~", "/a%2f?s=%2b~"),
        ("/a%2f b|", "/a%2F%20b%7C", "/a%2f%20b%7C"),
        ("/\xe9", "/%C3%A9", "/%C3%A9"),
        ("/a/../b", "/b", "/b"),
        ("/%zz", "/%25zz", "/%zz"),
    ],
)
def test_what_is_sent(written: str, rewritten: str, sent: str) -> None:
    assert to_the_letter(written, rewritten) == sent
