"""A web server as a registry, for images that no real registry would take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from tests.parts.registry import MANIFEST, SIF_CONFIG, SIF_LAYER
from tests.parts.webserver import WebServer


def put_sif(web: WebServer, repository: str, data: bytes, *, size_bytes: int = 0) -> str:
    """Have this image at tag 1, said to be so large; return the comment for it."""
    blobs = ((SIF_CONFIG, b"{}"), (SIF_LAYER, data))
    return _put(web, "oras", repository, blobs, size_bytes=size_bytes)


def put_image(
    web: WebServer, repository: str, config: tuple[str, bytes], layers: Sequence[tuple[str, bytes]]
) -> str:
    """Have an image of layers, with their media types, at tag 1; return the comment for it."""
    return _put(web, "docker", repository, (config, *layers))


def path_of_blob(repository: str, data: bytes) -> str:
    """Return the path that a blob is at."""
    return f"/v2/{repository}/blobs/sha256:{hashlib.sha256(data).hexdigest()}"


def put_manifest(web: WebServer, scheme: str, repository: str, text: bytes, media_type: str) -> str:
    """Answer tag 1 with this text; return the comment for it."""
    web.put(f"/v2/{repository}/manifests/1", text, content_type=media_type)
    return f"container:{scheme}://127.0.0.1:{web.port}/{repository}:1"


def _put(
    web: WebServer,
    scheme: str,
    repository: str,
    blobs: Sequence[tuple[str, bytes]],
    *,
    size_bytes: int = 0,
) -> str:
    described: list[dict[str, object]] = []
    for media_type, blob in blobs:
        path = path_of_blob(repository, blob)
        digest = path.rpartition("/")[2]
        described.append({"mediaType": media_type, "digest": digest, "size": len(blob)})
        web.put(path, blob)
    if size_bytes:
        described[-1]["size"] = size_bytes
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": described[0],
        "layers": described[1:],
    }
    return put_manifest(web, scheme, repository, json.dumps(manifest).encode(), MANIFEST)
