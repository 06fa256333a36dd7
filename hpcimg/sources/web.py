"""https:// and http:// files."""

from __future__ import annotations

from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.connections import Response
from hpcimg.http.download import Get, download
from hpcimg.http.session import open_session
from hpcimg.reference import Reference

# The header for each kind of validator, both when stored and when asking.
_CONDITIONS = {"etag": "If-None-Match", "date": "If-Modified-Since"}


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch a file from a web server; see `hpcimg.sources`."""
    asked = condition(validator)
    with open_session(settings) as session:
        return download(session, Get(reference.address, asked, offer=offer), sink, settings)


def condition(validator: str) -> dict[str, str]:
    """Return the header that asks whether the validator is still current."""
    kind, _, value = validator.partition(" ")
    return {_CONDITIONS[kind]: value} if kind in _CONDITIONS else {}


def offer(response: Response, total: int | None) -> Offer:
    """Make an offer from a response, by its ETag or else its date."""
    if etag := response.headers.get("ETag"):
        return Offer(f"etag {etag}", total)
    if date := response.headers.get("Last-Modified"):
        return Offer(f"date {date}", total)
    return Offer("none", total)
