"""Redirects, followed to the letter and never out of TLS (RFC 9110, section 15.4). Pure."""

from __future__ import annotations

import string
from collections.abc import Mapping
from urllib.parse import quote

from hpcimg.errors import Forbidden, Unreachable
from hpcimg.http.urls import address, origin, shown

REDIRECTS_MAX = 10
_STATUSES = frozenset({301, 302, 303, 307, 308})


def location_of(status: int, headers: Mapping[str, str]) -> str:
    """Return where a response redirects to, as its server wrote it; "" if it does not."""
    return headers.get("Location", "") if status in _STATUSES else ""


def goal_of(url: str, location: str) -> str:
    """Return the address that a Location from `url` stands for. Raises Unreachable, Forbidden."""
    written = location.encode("latin-1")  # as http.client reads headers
    try:
        said = written.decode()
    except ValueError:  # not UTF-8
        said = quote(written, safe=string.printable)
    goal = address(said.strip(), base=url).partition("#")[0]
    if not goal:
        raise no_address(f"{shown(url)} could not be read", "its server redirects to")
    if origin(url)[0] == "https" and origin(goal)[0] == "http":
        raise Forbidden(
            f"{shown(url)} is not read",
            why=f"its server redirects from https to plain http, at {origin(goal)[1]}",
            do="Tell the operators of that server, or use an address that stays on https.",
        )
    return goal


def no_address(what: str, whose: str) -> Unreachable:
    """Return the error for an invalid address in a server's answer: that server's fault."""
    error = Unreachable(what, why=f"{whose} an address that is not http")
    error.tried_again = False
    return error
