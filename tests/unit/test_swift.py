"""Swift's names, signatures and answers."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
import urllib3

from hpcimg.errors import BadReference, Forbidden
from hpcimg.http.connections import Response
from hpcimg.reference import Reference
from hpcimg.sources.openstack import swift
from hpcimg.sources.openstack.keystone import find_storage
from hpcimg.sources.openstack.openrc import Openrc


@pytest.mark.parametrize(
    ("rest", "container", "name"),
    [
        ("images/x.sif", "images", "x.sif"),
        ("images/a/b//c:1@2+3,4.sif", "images", "a/b//c:1@2+3,4.sif"),
        ("a%20b/%C3%A9%25%3F.sif", "a b", "é%?.sif"),
    ],
)
def test_names(rest: str, container: str, name: str) -> None:
    assert swift.parse_name(Reference("swift", rest)) == (container, name)


@pytest.mark.parametrize(
    "rest", ["c", "c/", "/x", "c/../x", "../x", "c/./x", "c/%00", "c/%41", "c/%2F", "c/%c3%a9"]
)
def test_what_is_no_name(rest: str) -> None:
    with pytest.raises(BadReference):
        swift.parse_name(Reference("swift", rest))


def test_the_signature_is_of_the_path_as_it_is() -> None:
    # As `printf 'GET\n1800000000\n/v1/AUTH_a/c/o p.sif' | openssl dgst -sha256 -hmac key` has it.
    signature = "d2461785b9f90d91809fded257ef22739fc89b6667e633d4776fe87f42e0a81c"
    query = swift.sign("https://h:1/v1/AUTH_a/c/o%20p.sif", "key", expires=1800000000)
    assert query == f"?temp_url_sig={signature}&temp_url_expires=1800000000"


@pytest.mark.parametrize(
    ("headers", "md5"),
    [
        ({"ETag": "d41d8cd98f00b204e9800998ecf8427e"}, "md5:1B2M2Y8AsgTpgAmY7PhCfg=="),
        ({"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'}, "md5:1B2M2Y8AsgTpgAmY7PhCfg=="),
        ({"ETag": "d41d8cd98f00b204e9800998ecf8427e-3"}, ""),
        ({"ETag": "d41d8cd98f00b204e9800998ecf8427e", "X-Static-Large-Object": "True"}, ""),
        ({"ETag": "d41d8cd98f00b204e9800998ecf8427e", "X-Object-Manifest": "c/s"}, ""),
        ({}, ""),
    ],
)
def test_what_an_etag_says(headers: dict[str, str], md5: str) -> None:
    assert swift.content_md5(headers) == md5


@pytest.mark.parametrize(("minutes", "said"), [(0, False), (30, True), (-30, True)])
def test_clocks_that_differ(minutes: int, said: bool) -> None:
    date = formatdate(time.time() + minutes * 60, usegmt=True)
    response = Response(401, {"Date": date}, "https://h/v1/a/c/o", {}, urllib3.HTTPResponse())
    access = swift.Access("https://h/v1/a", "with the key", key="k")
    with pytest.raises(Forbidden) as caught:
        swift._check(response, "swift://c/o", access)
    assert ("clocks of the node and the store are 30 min apart" in str(caught.value)) is said


def test_the_first_endpoint_where_no_region_is_named() -> None:
    endpoints = [
        {"interface": "internal", "region": "A", "url": "http://in/"},
        {"interface": "public", "region": "A", "url": "http://a/"},
        {"interface": "public", "region": "B", "url": "http://b/"},
    ]
    token = {"catalog": [{"type": "object-store", "endpoints": endpoints}]}

    def found(**said: str) -> str:
        return find_storage(token, Openrc(**said), "https://keystone")

    assert found() == "http://a/"
    assert found(os_region_name="B") == "http://b/"
    assert found(os_interface="internalURL") == "http://in/"
