"""Addresses of servers: comparing them, and showing them without secrets. Pure."""

from __future__ import annotations

import string
from urllib.parse import quote, unquote, urljoin, urlsplit

from urllib3.util import parse_url

Origin = tuple[str, str, int | None]  # scheme, host and port
_AS_WRITTEN = "".join(set(string.printable) - set(string.whitespace) - set('"<>\\^`{|}'))


def to_the_letter(written: str, rewritten: str) -> str:
    """Return an address as written, but for characters that no address has.

    If a library had to do more than that, as for the dots of a path, return what it made of it.
    """
    quoted = quote(written, safe=_AS_WRITTEN)
    return quoted if unquote(quoted) == unquote(rewritten) else rewritten


def origin(url: str) -> Origin:
    """Return the origin of an address, ("", "", None) if it is not one.

    Servers with the same origin may share secrets.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return parts.scheme, parts.hostname or "", port
    except ValueError:
        return "", "", None


def target(url: str) -> str:
    """Return what a request for an address names: its path and query."""
    parts = urlsplit(url)
    return f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"


def address(said: str, *, base: str = "") -> str:
    """Return the http address in a server's answer, "" if it is invalid.

    It may be relative to `base`. A user name and password in it are dropped (RFC 9110, section
    4.2.4).
    """
    try:
        url = urljoin(base, said)
        user, at, _ = urlsplit(url).netloc.rpartition("@")
        url = url.replace(f"{user}{at}", "", 1)
        host = (urlsplit(url).hostname or "").encode("idna").decode()
        reached = (parse_url(url).host or "").strip("[]")
    except ValueError:  # urllib3's errors are subclasses
        return ""
    # Python and urllib3 differ on a backslash: one decides who gets a login, one who is connected.
    same = host and host == reached
    return url if same and origin(url)[0] in ("http", "https") else ""


def shown(url: str) -> str:
    """Return an address for messages: without its query, which may contain a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
