"""Credentials files: tables of their content, and of which login applies."""

from __future__ import annotations

import base64
import json

import pytest

from hpcimg.sources.oci import credentials
from hpcimg.sources.oci.credentials import Keyring, Login, find, normal_key


def auth(pair: str) -> dict[str, str]:
    return {"auth": base64.b64encode(pair.encode()).decode()}


def keyring(**auths: object) -> Keyring:
    return credentials.parse_docker(json.dumps({"auths": auths}), "f")


@pytest.mark.parametrize(
    ("fields", "login"),
    [
        (auth("jo:pass"), Login("jo", "pass")),
        (auth("jo:a:b"), Login("jo", "a:b")),
        (auth("jo:pass\0\0"), Login("jo", "pass")),
        ({"username": "jo", "password": "pass"}, Login("jo", "pass")),
        ({**auth("jo:new"), "username": "al", "password": "old"}, Login("jo", "new")),
        (
            {**auth("jo:"), "identitytoken": "i"},
            Login("jo", "", identity_token="i"),
        ),
        ({"identitytoken": "i"}, Login(identity_token="i")),
        ({"registrytoken": "r"}, Login(registry_token="r")),
        # docker writes an empty one where a helper has the login.
        ({}, None),
        (auth("jo"), None),
        (auth(":pass"), None),
        ({"auth": "***"}, None),
        ({"auth": "/w=="}, None),
        ({"auth": 5, "username": [], "password": {}}, None),
        ({"username": "jo"}, None),
        ([], None),
        (None, None),
    ],
)
def test_what_is_a_login(fields: object, login: Login | None) -> None:
    found = find(keyring(h=fields), "h", "x")
    assert found == (login and login._replace(source="f"))


@pytest.mark.parametrize(
    ("key", "normal"),
    [
        ("registry.example.org", "registry.example.org"),
        ("https://registry.example.org", "registry.example.org"),
        ("http://registry.example.org/", "registry.example.org"),
        ("https://registry.example.org/v1/", "registry.example.org"),
        ("registry.example.org/v2", "registry.example.org"),
        ("Registry.Example.org:5000/v2/", "registry.example.org:5000"),
        ("registry.example.org/lab/x", "registry.example.org/lab/x"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("auth.docker.io", "docker.io"),
        ("docker.io/lab", "docker.io/lab"),
        ("", ""),
    ],
)
def test_how_keys_are_written(key: str, normal: str) -> None:
    assert normal_key(key) == normal


NESTED = keyring(
    **{
        "h:5000/a/b/c": auth("deep:x"),
        "h:5000/a": auth("a:x"),
        "h:5000": auth("host:x"),
        "h": auth("other-port:x"),
        "https://index.docker.io/v1/": auth("hub:x"),
    }
)


@pytest.mark.parametrize(
    ("host", "repository", "user"),
    [
        ("h:5000", "a/b/c", "deep"),
        ("h:5000", "a/b/c/d", "deep"),
        ("h:5000", "a/b", "a"),
        ("h:5000", "ab", "host"),
        ("H:5000", "x", "host"),
        ("h", "a", "other-port"),
        ("h:6000", "a", ""),
        ("docker.io", "library/x", "hub"),
        ("index.docker.io", "lab/x", "hub"),
        ("docker.io.example.org", "x", ""),
        ("ker.io", "x", ""),
    ],
)
def test_the_nearest_key(host: str, repository: str, user: str) -> None:
    login = find(NESTED, host, repository)
    assert (login.username if login else "") == user


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '"auths"', "[" * 100_000, '{"a":' * 100_000, "\0", "1" * 10_000]
)
def test_what_is_no_credentials_file(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it is not (JSON|a JSON object)$"):
        credentials.parse_docker(text, "f")


@pytest.mark.parametrize(
    "content",
    [
        {"auths": [], "credHelpers": [], "credsStore": []},
        {"auths": {"h": "x"}, "credHelpers": {"h": 5}, "credsStore": "../x"},
        {"credHelpers": {"h": "a b", "i": "", "j": "x;y", "k": "-x"}, "credsStore": "x" * 65},
    ],
)
def test_wrong_types_and_names_are_not_there(content: object) -> None:
    assert credentials.parse_docker(json.dumps(content), "f") == Keyring()


def test_helpers_and_the_store() -> None:
    content = {"credHelpers": {"https://H:5000": "ecr-login"}, "credsStore": "pass"}
    found = credentials.parse_docker(json.dumps(content), "f")
    assert (found.helpers, found.store) == ({"h:5000": "ecr-login"}, "pass")


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ('{"ServerURL": "h", "Username": "jo", "Secret": "s"}', Login("jo", "s", source="p")),
        ('{"Username": "<token>", "Secret": "s"}', Login(identity_token="s", source="p")),
        ('{"Username": "jo", "Secret": ""}', None),
        ('{"Secret": "s"}', None),
        ("credentials not found in native keychain", None),
        ("[]", None),
        ("[" * 100_000, None),
    ],
)
def test_what_a_helper_prints(text: str, login: Login | None) -> None:
    assert credentials.parse_helper(text, "p") == login


ENROOT = """
# a comment
machine nvcr.io login $oauthtoken password k3y
machine auth.docker.io login jo password pass
machine gcr.io login oauth2accesstoken password $(gcloud auth print-access-token)
machine ecr.example.org login AWS password `date`
  machine two.example.org   login a password 1
machine two.example.org login b password 2
machine incomplete.example.org login jo
machine
default login jo password everywhere
"""


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("nvcr.io", "$oauthtoken"),
        ("docker.io", "jo"),
        ("gcr.io", ""),
        ("ecr.example.org", ""),
        ("two.example.org", "a"),
        ("incomplete.example.org", ""),
        ("other.example.org", ""),
    ],
)
def test_enroots_file(host: str, name: str) -> None:
    login = find(credentials.parse_netrc(ENROOT, "f"), host, "x")
    assert (login.username if login else "") == name


def test_a_login_is_not_shown() -> None:
    login = Login("jo", "s3cret", "1dentity", "r3gistry", "~/.docker/config.json")
    assert repr(login) == str(login) == f"{login}" == "Login(source='~/.docker/config.json')"


def test_basic() -> None:
    assert Login("jo", "pässword").basic == "Basic am86cMOkc3N3b3Jk"
    assert Login("jo").basic == Login("", "x").basic == ""
