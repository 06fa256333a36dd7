"""Addresses of servers: what they are the same as, what is shown of them. Pure."""

from __future__ import annotations

from urllib.parse import unquote, urljoin, urlsplit

import requests

_REWRITTEN = frozenset(' "<>\\^`{|}')  # what requests writes as %XX


def to_the_letter(written: str, rewritten: str) -> str:
    """Return an address as it was written where it is the same as what libraries make of it."""
    plain = written.isascii() and written.isprintable() and not _REWRITTEN & set(written)
    return written if plain and unquote(written) == unquote(rewritten) else rewritten


def origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port: who may be told what was told this server.

    What is no address is the origin of nothing, ("", "", None).
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return parts.scheme, parts.hostname or "", port
    except ValueError:
        return "", "", None


def address(said: str, *, base: str = "") -> str:
    """Return the http address that a server's answer says, "" where it says none.

    It may be relative to `base`.
    """
    try:
        url = urljoin(base, said)
        requests.Request("GET", url).prepare()
        (urlsplit(url).hostname or "").encode("idna")
    except ValueError:  # and what requests makes of it
        return ""
    scheme, host, _ = origin(url)
    return url if scheme in ("http", "https") and host else ""


def shown(url: str) -> str:
    """Return an address as errors show it: without its query, which may hold a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
