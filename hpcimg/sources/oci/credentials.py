"""Credentials files: parsing them, and finding the login for a repository. Pure.

The formats are docker's config.json, containers-auth.json(5), and the netrc format of enroot.
Malformed entries are ignored.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hpcimg import dockerhub, jsontext

# The user name that credential helpers return if the secret is an identity token.
_TOKEN_USER = "<token>"  # noqa: S105
_HELPER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


class Login(NamedTuple):
    """Credentials: user name and password, or one of the two kinds of token.

    An identity token is exchanged at the token server, a registry token is sent to the registry
    itself. `source` says in messages where it comes from.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    source: str = ""

    def __repr__(self) -> str:
        return f"Login(source={self.source!r})"  # no traceback must show the rest

    @property
    def basic(self) -> str:
        """The value of an Authorization header, "" if there is no password."""
        if not self.username or not self.password:
            return ""
        pair = f"{self.username}:{self.password}".encode("utf-8", "surrogatepass")
        return f"Basic {base64.b64encode(pair).decode()}"


class Keyring(NamedTuple):
    """The content of one file: logins by host or host/namespace/..., in order, and helpers to run.

    `helpers` are by host; `store` is the helper for all others. Both are program names without
    `docker-credential-`.
    """

    logins: tuple[tuple[str, Login], ...] = ()
    helpers: Mapping[str, str] = {}
    store: str = ""


def parse_docker(text: str, source: str) -> Keyring:
    """Parse docker's config.json or containers-auth.json. Raises ValueError if it is neither."""
    content = jsontext.read_object(text)
    auths, helpers = _mapping(content.get("auths")), _mapping(content.get("credHelpers"))
    logins = [
        (normal_key(key), login)
        for key, fields in auths.items()
        if (login := _login(_mapping(fields), source))
    ]
    named = {normal_key(host): name for host, name in helpers.items() if _is_helper(name)}
    store = content.get("credsStore")
    return Keyring(tuple(logins), named, str(store) if _is_helper(store) else "")


def parse_netrc(text: str, source: str) -> Keyring:
    """Parse enroot's credentials file.

    Enroot expands a password that begins with `$` in a shell; here it is ignored. A user name like
    NGC's `$oauthtoken` is taken literally.
    """
    logins: list[tuple[str, Login]] = []
    for line in text.splitlines():
        words = line.split()
        fields = dict(zip(words[::2], words[1::2], strict=False))
        machine, password = fields.get("machine", ""), fields.get("password", "")
        login = Login(fields.get("login", ""), password, source=source)
        if machine and login.basic and not password.startswith(("$", "`")):
            logins.append((normal_key(machine), login))
    return Keyring(tuple(logins))


def parse_helper(text: str, source: str) -> Login | None:
    """Parse the output of a credential helper. None if it is not a login."""
    try:
        fields = jsontext.read_object(text)
    except ValueError:
        return None
    username, secret = _text(fields.get("Username")), _text(fields.get("Secret"))
    if not secret:
        return None
    if username == _TOKEN_USER:
        return Login(identity_token=secret, source=source)
    return Login(username, secret, source=source) if username else None


def find(keyring: Keyring, host: str, repository: str) -> Login | None:
    """Return the login for a repository: the first with the most specific key."""
    found = (
        login for wanted in keys(host, repository) for key, login in keyring.logins if key == wanted
    )
    return next(found, None)


def keys(host: str, repository: str) -> Iterator[str]:
    """Yield the possible keys for a repository, from the full name down to the host."""
    name = f"{dockerhub.canonical(host)}/{repository}"
    while name:
        yield name
        name = name.rpartition("/")[0]


def normal_key(key: str) -> str:
    """Return a key without what programs add to it: a scheme, /v1/ or /v2/."""
    name = key.strip().removeprefix("https://").removeprefix("http://").rstrip("/")
    host, _, path = name.partition("/")
    if path in ("v1", "v2"):
        path = ""
    return f"{dockerhub.canonical(host)}/{path}".rstrip("/")


def _login(fields: Mapping[str, Any], source: str) -> Login | None:
    username, password = _text(fields.get("username")), _text(fields.get("password"))
    pair = _decoded(_text(fields.get("auth")))
    if ":" in pair:
        username, _, password = pair.partition(":")
    login = Login(
        username,
        password.rstrip("\0"),  # docker itself reads it like this
        _text(fields.get("identitytoken")),
        _text(fields.get("registrytoken")),
        source,
    )
    return login if login.basic or login.identity_token or login.registry_token else None


def _decoded(auth: str) -> str:
    try:
        return base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_helper(name: object) -> bool:
    return isinstance(name, str) and _HELPER.fullmatch(name) is not None
