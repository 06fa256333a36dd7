"""https:// and http:// files."""

from __future__ import annotations

import requests

from hpcimg.fetching import Offer, Settings
from hpcimg.reference import Reference
from hpcimg.sink import Sink
from hpcimg.transfer import download, open_session

# Which header goes with which kind of validator, in what we keep and what we ask.
_CONDITIONS = {"etag": "If-None-Match", "date": "If-Modified-Since"}


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch a file from a web server; see `hpcimg.sources`."""
    kind, _, value = validator.partition(" ")
    condition = {_CONDITIONS[kind]: value} if kind in _CONDITIONS else {}
    with open_session() as session:
        return download(session, reference.uri, sink, settings, headers=condition, offer=_offer)


def _offer(response: requests.Response, total: int | None) -> Offer:
    if etag := response.headers.get("ETag"):
        return Offer(f"etag {etag}", total)
    if date := response.headers.get("Last-Modified"):
        return Offer(f"date {date}", total)
    return Offer("none", total)
