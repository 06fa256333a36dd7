"""Publish images on a web server that plays a registry, of any of the kinds that there are.

What each of them answers is in the tests of its source.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable

from tests.parts.registry import MANIFEST, SIF_CONFIG, SIF_LAYER
from tests.parts.webanswer import Answer
from tests.parts.webserver import WebServer


def sha256(data: bytes) -> str:
    """Return a digest in the notation of manifests."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def md5(data: bytes) -> str:
    """Return the other kind of digest that a static registry may have."""
    return f"md5:{base64.b64encode(hashlib.md5(data).digest()).decode()}"


def in_library(
    web: WebServer, name: str, data: bytes, *, prefix: str = "sha256.", redirect: str = ""
) -> None:
    """Put an image into a Singularity Library under `entity/collection/container:tag`.

    prefix: how the library writes a digest. redirect: where its file is, if elsewhere.
    """
    digest = prefix + hashlib.sha256(data).hexdigest()
    answer = {"data": {"hash": digest, "size": len(data), "arch": "amd64"}}
    content = json.dumps(answer).encode()
    web.put(f"/v1/images/{name}", content, content_type="application/json")
    file = f"/v1/imagefile/{name}"
    if redirect:
        web.handle(file, lambda _: Answer(303, {"Location": redirect}))
    else:
        web.put(file, data)


def in_hub(web: WebServer, name: str, data: bytes, version: str) -> None:
    """Put an image into a Singularity Hub under `user/name:tag`, with `@commit` where asked so."""
    image = web.put(f"/files/{version}.sif", data)
    answer = {"image": image, "version": version, "commit": "abc"}
    web.put(f"/api/container/{name}", json.dumps(answer).encode())


def in_static_registry(
    web: WebServer,
    pages: str,
    data: bytes,
    *,
    digest: Callable[[bytes], str] = sha256,
    address: str = "",
) -> None:
    """Put an image into a static registry, whose manifest is at the path `pages`.

    digest: what the manifest says, given the image. address: where it says that the file is.
    """
    url = web.put("/files/samtools.simg", data)
    layer = {
        "mediaType": "application/vnd.singularity.image.squashfs",
        "urls": [address or url],
        "digest": digest(data),
    }
    web.put(pages, json.dumps({"layers": [layer]}).encode(), content_type="text/html")


def in_registry(web: WebServer, repository: str, tag: str, sif: bytes) -> None:
    """Put a SIF image into an OCI registry that gives it to everybody."""
    config = b"{}"
    layer = {"mediaType": SIF_LAYER, "digest": sha256(sif), "size": len(sif)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": SIF_CONFIG, "digest": sha256(config), "size": len(config)},
        "layers": [layer],
    }
    web.put(f"/v2/{repository}/manifests/{tag}", json.dumps(manifest).encode())
    for blob in (config, sif):
        web.put(f"/v2/{repository}/blobs/{sha256(blob)}", blob)
