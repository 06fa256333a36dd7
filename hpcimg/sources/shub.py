"""shub:// : Singularity Hub, and self-hosted sregistry, which has the same API."""

from __future__ import annotations

import re

from hpcimg.errors import BadReference, NotAnImage
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http import urls
from hpcimg.http.download import Get, download
from hpcimg.http.redirects import no_address
from hpcimg.http.session import get_json, open_session
from hpcimg.reference import Reference

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch an image from a hub; see `hpcimg.sources`."""
    url = api_url(reference.rest, settings)
    with open_session(settings) as session:
        answer = get_json(session, url, sink, settings, what=reference.uri)
        image = answer.get("image")
        if not isinstance(image, str) or not image.startswith(("https://", "http://")):
            raise NotAnImage(f"{reference.uri} has no file", why="the hub names no address for it")
        if not urls.address(image):
            raise no_address(f"{reference.uri} could not be read", "the hub leads to")
        version = answer.get("version")
        # A hub's version is a digest of the image. Without one, a new image cannot be distinguished
        # from the old one, since a commit may be built twice.
        known = f"{version} {answer.get('commit')}" if version else "none"
        if version and known == validator:
            return True
        wanted = Get(image, offer=lambda _, total: Offer(known, total))
        return download(session, wanted, sink, settings)


def api_url(rest: str, settings: Settings) -> str:
    """Return the address to request for `[host/]user/name[:tag][@commit]`."""
    parts = rest.split("/")
    service = settings.service
    if len(parts) == 3:
        service = settings.address(parts.pop(0))
    name, _, version = parts[-1].partition(":")
    words = version.replace("@", " ").split() if version else name.split("@")[1:]
    plain = [*parts[:-1], name.partition("@")[0], *words]
    if len(parts) != 2 or not all(_PART.fullmatch(part) for part in plain):
        raise BadReference(
            f"shub://{rest} names no image of a hub", do="Write shub://user/name:tag."
        )
    if ":" not in parts[-1]:
        base, at, commit = parts[-1].partition("@")
        parts[-1] = f"{base}:latest{at}{commit}"
    return f"{service}/api/container/{'/'.join(parts)}"
