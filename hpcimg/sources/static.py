"""A static registry: web pages laid out like registry-org, under a scheme that the site defines.

GET BASE/ORG/NAME/manifests/TAG/ returns a manifest whose first layer has the file's address and its
digest, `sha256:<hex>` or, in old ones, `md5:<base64>`.
"""

from __future__ import annotations

import re
from typing import Any

from hpcimg.errors import BadReference, Damaged, NotAnImage
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http import urls
from hpcimg.http.download import Get, download
from hpcimg.http.redirects import no_address
from hpcimg.http.session import get_json, open_session
from hpcimg.reference import Reference

_SQUASHFS = "application/vnd.singularity.image.squashfs"
_NAME = re.compile(r"([A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)+)(?::([A-Za-z0-9._-]+))?")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_MD5 = re.compile(r"md5:([A-Za-z0-9+/]{22}==)")


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch an image from a static registry; see `hpcimg.sources`."""
    match = _NAME.fullmatch(reference.rest)
    if not match or ".." in reference.rest:
        raise BadReference(
            f"{reference.uri} names no image", do=f"Write {reference.scheme}://ORG/NAME:TAG."
        )
    # With a trailing slash: without it web servers redirect, some of them to http.
    url = f"{settings.service}/{match[1]}/manifests/{match[2] or 'latest'}/"
    with open_session(settings) as session:
        manifest = get_json(session, url, sink, settings, what=reference.uri)
        digest, address = _layer(manifest, reference.uri)
        if digest == validator:
            return True
        goal = urls.address(address, base=url)
        if not goal:
            raise no_address(f"{reference.uri} could not be read", "its manifest leads to")
        known = _SHA256.fullmatch(digest)
        download(
            session,
            Get(goal, offer=lambda _, total: Offer(digest, total, known[1] if known else "")),
            sink,
            settings,
        )
    if not known and sink.md5() != digest:
        raise Damaged(f"{reference.uri} is not what its manifest says", why=f"it is {sink.md5()}")
    return False


def _layer(manifest: dict[str, Any], uri: str) -> tuple[str, str]:
    """Return digest and address of the image file."""
    layers = manifest.get("layers")
    for layer in layers if isinstance(layers, list) else []:
        if not isinstance(layer, dict) or layer.get("mediaType") != _SQUASHFS:
            continue
        digest, urls = str(layer.get("digest", "")), layer.get("urls")
        has_digest = _SHA256.fullmatch(digest) or _MD5.fullmatch(digest)
        if has_digest and isinstance(urls, list) and urls and isinstance(urls[0], str):
            return digest, urls[0]
    raise NotAnImage(f"{uri} holds no image", why="its manifest names no image file with a digest")
