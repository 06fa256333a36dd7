"""Mirrors of web servers: other addresses for the same content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

from hpcimg.errors import HpcimgError, NodeError
from hpcimg.fetch.settings import Mirror, Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.urls import origin

# A mirror that is down costs only seconds, because there is another place to ask.
CONNECT_S = 3.0
ANSWER_S = 10.0
FILE_TRIES = 2  # an interrupted transfer is resumed once
# Query parameters of the sources that are no secret; any other may be a signature.
_PLAIN = frozenset({"arch", "versionId"})


def addresses(url: str, mirrors: Iterable[Mirror]) -> list[str]:
    """Return the addresses of this content on mirrors, in order."""
    return [found for mirror in mirrors if (found := _at(url, mirror))]


def _at(url: str, mirror: Mirror) -> str:
    if origin(url) != origin(mirror.of) or origin(url)[0] == "":
        return ""
    whole, of = urlsplit(url), urlsplit(mirror.of)
    if whole.username or not {name for name, _ in _query(whole.query)} <= _PLAIN:
        return ""
    base = of.path.rstrip("/")
    if not whole.path.startswith(f"{base}/"):
        return ""
    query = f"?{whole.query}" if whole.query else ""
    return f"{mirror.url}{whole.path[len(base) :]}{query}"


def _query(text: str) -> list[tuple[str, str]]:
    return parse_qsl(text, keep_blank_values=True)


@contextmanager
def passed_over(address: str, sink: Sink) -> Iterator[None]:
    """On a mirror's error, report it and start over with the next place."""
    try:
        yield
    except NodeError:
        raise
    except HpcimgError as error:
        sink.retry(f"mirror {urlsplit(address).netloc}: {error.brief}", 0.0)
        if sink.position:
            sink.rewind()


def conditions(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that a mirror may get: conditions, no login, no signature."""
    return {name: value for name, value in headers.items() if name.startswith("If-")}


def for_answers(settings: Settings) -> Settings:
    """Return the settings for a mirror that has to give a short answer."""
    answer_s = min(settings.stall_timeout_s, ANSWER_S)
    return for_files(settings)._replace(tries=1, stall_timeout_s=answer_s)


def for_files(settings: Settings) -> Settings:
    """Return the settings for a mirror that has to send a file."""
    connect_s = min(settings.connect_timeout_s, CONNECT_S)
    return settings._replace(connect_timeout_s=connect_s, tries=FILE_TRIES)
