"""Parsing a 401's challenge, and deciding whether its token server may get a login. Pure.

RFC 9110, section 11.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from hpcimg.http.addresses import LINK_LOCAL, LOOPBACK, PRIVATE, PUBLIC, kind

# A name, and its value if it has one: a name without a value is a scheme.
_PART = re.compile(
    r"""[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?"""
)
# Kinds of addresses that a server at one of these may refer to.
_ALSO = {PRIVATE: {PUBLIC}, LINK_LOCAL: {PUBLIC}, LOOPBACK: {PUBLIC, PRIVATE}}

Resolve = Callable[[str], Iterable[str]]


def parse_challenges(header: str) -> dict[str, Mapping[str, str]]:
    """Return the parameters of each scheme in WWW-Authenticate, with names in lower case."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    position = 0
    while match := _PART.match(header, position):
        position = match.end()
        name, quoted, plain = match.groups()
        if quoted is None and plain is None:
            current = found.setdefault(name.lower(), {})
        else:
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            current.setdefault(name.lower(), value)
    return dict(found)


def why_not(realm: str, registry: str, *, secret: bool, resolve: Resolve) -> str:
    """Return why a registry's token server must not be contacted, "" if it may be.

    Both are URLs. `secret` says that a login would be sent. A public registry must not make this
    node contact servers that only the node can reach.
    """
    try:
        parts, own = urlsplit(realm), urlsplit(registry)
        host, own_host = parts.hostname or "", own.hostname or ""
        parts.port  # noqa: B018  # raises for what is no number
    except ValueError:
        return "it names no address to log in at"
    if parts.scheme not in ("https", "http") or not host or "@" in parts.netloc:
        return "it names no http address to log in at"
    if secret and parts.scheme == "http" and own.scheme == "https":
        return f"it asks for the login over plain http, at {host}"
    if host == own_host:
        return ""
    kinds = _kinds(host, resolve) - {PUBLIC}
    if not kinds:
        return ""
    own_kinds = _kinds(own_host, resolve)
    allowed = own_kinds.union(*(_ALSO.get(own_kind, set()) for own_kind in own_kinds))
    if kinds <= allowed:
        return ""
    return f"it is at a {min(kinds - allowed)} address, {host}"


def _kinds(host: str, resolve: Resolve) -> set[str]:
    """Return the kinds of addresses that a host has."""
    return {kind(address) for address in resolve(host)}
