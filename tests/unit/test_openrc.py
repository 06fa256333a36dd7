"""Credentials files in the form of an openrc file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.errors import ConfigError, UserError
from hpcimg.sources.openstack.keystone import identity
from hpcimg.sources.openstack.openrc import Openrc, parse


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("OS_PASSWORD=abc", "abc"),
        ("  export OS_PASSWORD=abc  # a comment", "abc"),
        ("OS_PASSWORD=a#b", "a#b"),
        ("OS_PASSWORD='a$b \"c` \\'", 'a$b "c` \\'),
        ('OS_PASSWORD="it\'s #1"', "it's #1"),
        ("OS_PASSWORD=", ""),
        ("OS_PASSWORD=''", ""),
        ("OS_PASSWORD=first\nOS_PASSWORD=last", "last"),
        ("#!/usr/bin/env bash\n\nOS_IDENTITY_API_VERSION=3\r\nOS_PASSWORD=é", "é"),
    ],
)
def test_values(line: str, password: str) -> None:
    assert parse(line, "x", site=True) == Openrc(os_password=password, where="x", site=True)


@pytest.mark.parametrize(
    "line",
    [
        "OS_PASSWORD=$(cat /secret)",
        "OS_PASSWORD=`cat /secret`",
        "export OS_PASSWORD=$OS_PASSWORD_INPUT_secret",
        'OS_PASSWORD="${secret}"',
        "OS_PASSWORD=secret; rm -rf /",
        "OS_PASSWORD=secret more",
        "OS_PASSWORD='secret",
        "OS_PASSWORD='secret''more'",
        "OS_PASSWORD=sec\\ret",
        "read -sr secret",
        'if [ -z "$secret" ]; then unset OS_REGION_NAME; fi',
        "secret",
        "OS_PASSWORD = secret",
        "OS_PASSWORD=' secret'",
        "OS_PASSWORD='sec\x1bret'",
    ],
)
@pytest.mark.parametrize(("site", "error"), [(True, ConfigError), (False, UserError)])
def test_what_wants_a_shell(line: str, site: bool, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        parse(f"OS_USERNAME=me\n{line}\n", "the file", site=site)
    assert "the file cannot be used" in str(caught.value)
    assert "line 2" in str(caught.value)
    assert "ret" not in str(caught.value)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, "x", site=False)
    except UserError:
        pass


def test_names_of_our_own_are_no_keys() -> None:
    assert parse("SITE=1\nWHERE=there\n", "x", site=False) == Openrc(where="x", site=False)


def test_ids_go_before_names() -> None:
    openrc = Openrc(
        os_username="me", os_user_id="u1", os_password="p", os_project_id="p1", os_project_name="l"
    )
    auth = identity(openrc)
    assert auth["identity"]["password"]["user"] == {"id": "u1", "password": "p"}
    assert auth["scope"] == {"project": {"id": "p1"}}


def test_no_domain_is_the_default_one() -> None:
    auth = identity(Openrc(os_username="me", os_password="p"))
    assert auth["identity"]["password"]["user"]["domain"] == {"id": "default"}
    assert "scope" not in auth
