"""library:// : the Singularity Library's protocol, at the configured service."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from hpcimg.errors import BadReference, NotAnImage, NotFound
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http import urls
from hpcimg.http.download import Get, download
from hpcimg.http.session import Session, get_json, open_session
from hpcimg.image.architecture import go_name
from hpcimg.imagename import Name
from hpcimg.reference import Reference
from hpcimg.sources.oci import image as oci
from hpcimg.sources.oci.registry import Registry

_HASH = re.compile(r"(?:sha256[.:])?([0-9a-f]{64})")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Place(NamedTuple):
    """The location of an image: a service's address, entity/collection/container, and a tag."""

    service: str
    path: str
    tag: str


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch the image for this machine from a library; see `hpcimg.sources`."""
    place = parse_place(reference.rest, settings)
    image = f"{place.path}:{place.tag}?{urlencode({'arch': go_name()})}"
    with open_session(settings) as session:
        answer = get_json(
            session, f"{place.service}/v1/images/{image}", sink, settings, what=reference.uri
        )
        digest, size = _content(answer, reference.uri)
        if digest == validator:
            return True
        registry = _redirect(session, place, sink, settings, reference.uri)
        if registry is not None:
            oci.fetch_from(registry, sink, uri=reference.uri, known_as=digest)
            return False
        sink.offer(Offer(digest, size, digest))
        wanted = Get(f"{place.service}/v1/imagefile/{image}")
        return download(session, wanted, sink, settings)


def parse_place(rest: str, settings: Settings) -> Place:
    """Parse `[host/]entity/collection/container[:tag]`; with a host if there are four parts."""
    parts = rest.split("/")
    service = settings.service
    if len(parts) == 4:
        service = settings.address(parts.pop(0))
    parts[-1], _, tag = parts[-1].partition(":")
    if len(parts) != 3 or not all(_PART.fullmatch(part) for part in [*parts, tag or "latest"]):
        raise BadReference(
            f"library://{rest} names no image of a library",
            do="Write library://entity/collection/container:tag.",
        )
    return Place(service, "/".join(parts), tag or "latest")


def _content(answer: dict[str, object], uri: str) -> tuple[str, int | None]:
    """Return sha256 and size of the image file."""
    data = answer.get("data")
    if not isinstance(data, dict):
        raise NotFound(f"there is nothing at {uri}", why="the library has no such image")
    match = _HASH.fullmatch(str(data.get("hash", "")))
    if not match:
        raise NotAnImage(f"{uri} cannot be checked", why="the library gives no sha256 for it")
    size = data.get("size")
    return match[1], size if isinstance(size, int) and size > 0 else None


def _redirect(
    session: Session, place: Place, sink: Sink, settings: Settings, uri: str
) -> Registry | None:
    """Return the OCI registry to which the library redirects; None if it has the image itself."""
    namespace = "/".join(place.path.split("/")[:2])
    query = urlencode({"namespace": namespace, "accessTypes": "pull"})
    try:
        answer = get_json(
            session, f"{place.service}/v1/oci-redirect?{query}", sink, settings, what=uri
        )
    except (NotFound, NotAnImage):  # a library without a registry
        return None
    parts = urlsplit(urls.address(str(answer.get("url", ""))))
    if not parts.netloc or "@" in parts.netloc:
        return None
    name = Name(parts.netloc, place.path, place.tag)
    # Another host, named by the library: it gets no login except the library's token.
    settings = settings._replace(insecure=parts.scheme == "http", credentials="", as_user=False)
    registry = Registry(session, name, sink, settings, uri=uri)
    registry.use_token(str(answer.get("token", "")))
    return registry
