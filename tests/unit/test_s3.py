"""Object names, their addresses, and what the site says about S3."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hpcimg.config import load as config
from hpcimg.errors import BadReference, MissingTool
from hpcimg.reference import Reference, parse
from hpcimg.site import services
from hpcimg.site.mirrors import Location
from hpcimg.site.services import Service
from hpcimg.sources import aws, s3
from hpcimg.sources.s3 import Key, Place

AMAZON = "https://s3.amazonaws.com"
WEST = "https://s3.eu-west-1.amazonaws.com"
CHINA = "https://s3.cn-north-1.amazonaws.com"
CEPH = "http://ceph.example:7480"


@pytest.mark.parametrize(
    ("rest", "key"),
    [
        ("b/x.sif", Key("b", "x.sif", "")),
        ("b/a/b+c=d,e.sif", Key("b", "a/b+c=d,e.sif", "")),
        ("b/a%20b/100%25/%3F/%C3%BC.sif", Key("b", "a b/100%/?/\xfc.sif", "")),
        ("b//x", Key("b", "/x", "")),
        ("b/x?versionId=3/L4kq+J~_.-=", Key("b", "x", "3/L4kq+J~_.-=")),
        ("tenant:b.c/x", Key("tenant:b.c", "x", "")),
    ],
)
def test_names(rest: str, key: Key) -> None:
    assert s3.parse_key(Reference("s3", rest)) == key


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("b", "s3://BUCKET/KEY"),
        ("b/", "s3://BUCKET/KEY"),
        (".b/x", "s3://BUCKET/KEY"),
        ("%41/x", "s3://BUCKET/KEY"),
        ("b/x?", "versionId"),
        ("b/x?versionid=1", "versionId"),
        ("b/x?versionId=1&x=y", "%3F in a key"),
        ("b/%41", "did you mean s3://b/A"),
        ("b/a%2Fb", "did you mean s3://b/a/b"),
        ("b/%c3%bc", "did you mean s3://b/%C3%BC"),
        ("b/100%", "did you mean s3://b/100%25"),
        ("b/%FF", "not UTF-8"),
        ("b/../x", "it has . or .. in it"),
        ("b/%2E%2E/x", "has . or .. in it"),
        ("b/./x", "it has . or .. in it"),
    ],
)
def test_what_is_no_name(rest: str, words: str) -> None:
    with pytest.raises(BadReference) as caught:
        s3.parse_key(parse(f"s3://{rest}"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("service", "region", "bucket", "address", "signed"),
    [
        (AMAZON, "", "b-1", "https://b-1.s3.amazonaws.com", "us-east-1"),
        (AMAZON, "eu-west-1", "b-1", "https://b-1.s3.eu-west-1.amazonaws.com", "eu-west-1"),
        (AMAZON, "eu-west-1", "b.c", "https://s3.eu-west-1.amazonaws.com/b.c", "eu-west-1"),
        (AMAZON, "", "B_1", "https://s3.amazonaws.com/B_1", "us-east-1"),
        (WEST, "", "b-1", "https://b-1.s3.eu-west-1.amazonaws.com", "eu-west-1"),
        (WEST, "us-west-2", "b-1", "https://b-1.s3.us-west-2.amazonaws.com", "us-west-2"),
        (f"{CHINA}.cn", "", "b-1", "https://b-1.s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        (f"{AMAZON}.example", "", "b-1", f"{AMAZON}.example/b-1", "us-east-1"),
        (CEPH, "", "b-1", f"{CEPH}/b-1", "us-east-1"),
        (f"{CEPH}/s3", "ours", "t:b", f"{CEPH}/s3/t%3Ab", "ours"),
    ],
)
def test_addresses(service: str, region: str, bucket: str, address: str, signed: str) -> None:
    place = Place(service, region)
    assert place.url(Key(bucket, "a b/c+d?", "")) == f"{address}/a%20b/c%2Bd%3F"
    assert place.url(Key(bucket, "x", "1=")) == f"{address}/x?versionId=1%3D"
    assert place.signed_region == signed


def test_without_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "Credentials", None)
    with pytest.raises(MissingTool, match=r"needs the Python package botocore.*EXTRAS=s3"):
        aws.signed("http://h/b/x", {}, aws.Keys("a", "s", "", "x"), "us-east-1")


def test_a_session_token_is_sent_and_signed() -> None:
    headers = aws.signed("http://h/b/x", {}, aws.Keys("a", "s", "token", "x"), "us-east-1")
    assert headers["X-Amz-Security-Token"] == "token"
    assert "x-amz-security-token" in headers["Authorization"]


def s3_service(directory: Path, text: str, **environment: str) -> Service:
    path = directory / "hpcimg.conf"
    path.write_text(f"[s3]\n{text}")
    found = services.find(config.load(str(path)), Reference("s3", "b/x"), environment)
    assert found.site_hosts == (urlsplit(found.url).netloc,)
    return found._replace(site_hosts=())


def test_what_the_site_says(tmp_path: Path) -> None:
    at = Location("", insecure=False, auth_file="", shared=False)
    assert s3_service(tmp_path, "") == Service((at,), url=AMAZON)
    text = "url = http://h:1/\nregion = r\nauth_file = /keys\nshared = yes\n"
    every = {
        "AWS_ENDPOINT_URL_S3": "http://s3", "AWS_ENDPOINT_URL": "http://other",
        "AWS_REGION": "r1", "AWS_DEFAULT_REGION": "r2",
        "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "S", "AWS_SESSION_TOKEN": "T",
    }  # fmt: skip
    said = s3_service(tmp_path, text, **every)
    assert (said.url, said.region) == ("http://h:1", "r")
    assert said.locations == (at._replace(auth_file="/keys", shared=True),)
    keys = "[default]\naws_access_key_id = A\naws_secret_access_key = S\naws_session_token = T"
    assert s3_service(tmp_path, "", **every) == Service((at,), "http://s3", "r1", keys)
    assert aws.site_keys(keys)[:3] == ("A", "S", "T")
    assert s3_service(tmp_path, "", AWS_ACCESS_KEY_ID="A", AWS_DEFAULT_REGION="r2") == Service(
        (at,), url=AMAZON, region="r2"
    )
