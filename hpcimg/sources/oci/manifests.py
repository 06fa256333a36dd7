"""Reading manifests: SIF file or layers, and for which machine.

OCI Image Specification 1.1, Docker's image manifest version 2 schema 2. Manifests are untrusted:
nothing in them is assumed to have the right type.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hpcimg import jsontext
from hpcimg.errors import NotAnImage
from hpcimg.fetch.contract import LAYERS_MAX, Blob, text_of
from hpcimg.http.urls import shown
from hpcimg.imagename import DIGEST
from hpcimg.reference import ENDINGS

# The second is a typo of early clients.
_SIF_TYPES = (
    "application/vnd.sylabs.sif.layer.v1.sif",
    "appliciation/vnd.sylabs.sif.layer.tar",
)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_IMAGE_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
MANIFEST_TYPES = (*INDEX_TYPES, *_IMAGE_TYPES)
_LAYER_TYPES = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.docker.container.image.rootfs.diff",  # used by the first registries
)
_TITLE = "org.opencontainers.image.title"  # where `oras push` puts a file's name
_TEXTS_MAX = 1 << 20  # of all manifests of an image together: they are passed between processes


class Manifest(NamedTuple):
    """A manifest with the digest of its bytes.

    `texts` are those of the indexes that led to it and its own, as in an Offer.
    """

    digest: str
    content: dict[str, Any]
    texts: tuple[str, ...] = ()


def is_digest(value: object) -> bool:
    """Tell whether this is a sha256 digest as written in manifests."""
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def hex_of(digest: str) -> str:
    """Return the hexadecimal digits of a digest."""
    return digest.removeprefix("sha256:")


def parse(body: bytes, digest: str, uri: str) -> Manifest:
    """Parse a manifest or an index. Raises NotAnImage.

    One that could be read as both is refused, whatever its media type says: two programs could pick
    different images, only one of which was checked (CVE-2021-41190).
    """
    try:
        content = jsontext.read_object(body)
    except ValueError as error:
        raise NotAnImage(
            f"{uri} holds no image", why=f"its manifest cannot be read: {error}"
        ) from None
    media_type = content.get("mediaType")
    lists = "manifests" in content
    if content.get("schemaVersion") == 1 or "fsLayers" in content:
        raise NotAnImage(
            f"{uri} is not an image",
            why="its manifest has the obsolete schema 1",
            do="Push it again with a current tool.",
        )
    if lists and ("layers" in content or "config" in content):
        raise NotAnImage(f"{uri} is ambiguous", why="its manifest is an image and an index at once")
    if media_type in (_IMAGE_TYPES if lists else INDEX_TYPES):
        raise NotAnImage(
            f"{uri} is ambiguous", why=f"its manifest is not a {media_type}, as it claims"
        )
    if not isinstance(content.get("manifests" if lists else "layers"), list):
        raise NotAnImage(f"{uri} holds no image", why="its manifest names no layers")
    return Manifest(digest, content, (text_of(body),))


def sif_layer(manifest: Manifest) -> Blob | None:
    """Return the SIF or squashfs file in a manifest, if there is one.

    It is recognized by its type or, if a single file was pushed without one, by its name.
    """
    layers = [layer for layer in manifest.content["layers"] if isinstance(layer, dict)]
    for layer in layers:
        if layer.get("mediaType") in _SIF_TYPES:
            return _blob(layer)
    notes = layers[0].get("annotations") if len(layers) == 1 else None
    named = notes.get(_TITLE) if isinstance(notes, dict) else None
    is_file = isinstance(named, str) and named.lower().endswith(ENDINGS)
    return _blob(layers[0]) if is_file else None


def is_artifact(manifest: Manifest) -> bool:
    """Tell whether a manifest contains something other than an image, such as a signature."""
    if "manifests" in manifest.content or sif_layer(manifest):
        return False
    return not all(
        isinstance(layer, dict) and str(layer.get("mediaType", "")).startswith(_LAYER_TYPES)
        for layer in manifest.content["layers"]
    )


def layers(manifest: Manifest, uri: str) -> tuple[Blob, ...]:
    """Return an image's layers, lowest first. Raises NotAnImage."""
    listed = manifest.content.get("layers")
    if not isinstance(listed, list) or not listed:
        raise NotAnImage(f"{uri} is not an image", why="it has no layers")
    check_number(len(listed), uri)
    found = []
    for layer in listed:
        kind = str(layer.get("mediaType")) if isinstance(layer, dict) else ""
        blob = _blob(layer) if kind.startswith(_LAYER_TYPES) and "encrypted" not in kind else None
        if blob is None:
            raise NotAnImage(
                f"{uri} is not an image for Linux",
                why=_why_no_layer(layer if isinstance(layer, dict) else {}, kind),
                do="hpcimg takes SIF files and images in layers.",
            )
        found.append(blob)
    if len({blob.sha256 for blob in found}) != len(set(found)):
        raise NotAnImage(f"{uri} is not an image", why="it names one layer with two sizes")
    return tuple(found)


def why_missing(manifest: Manifest, blob: Blob) -> str:
    """Return why a layer may be missing from the registry, "" if it should be there.

    Registries need not have copies of foreign layers, such as those of Windows.
    """
    for layer in manifest.content["layers"]:
        if isinstance(layer, dict) and layer.get("digest") == f"sha256:{blob.sha256}":
            urls = layer.get("urls")
            if isinstance(urls, list) and urls:
                place = shown(str(urls[0])[:200])
                return f"; it is a foreign layer at {place}, which is not contacted"
    return ""


def _why_no_layer(layer: dict[str, Any], kind: str) -> str:
    kind = kind[:100] or "a layer without a type"
    digest = layer.get("digest")
    if "encrypted" in kind:
        return f"it holds {kind}: its layers are encrypted"
    if kind.startswith(_LAYER_TYPES) and isinstance(digest, str) and not is_digest(digest):
        algorithm = digest.partition(":")[0][:20]
        return f"a layer has a {algorithm} digest, and hpcimg supports only sha256"
    if kind.startswith(_LAYER_TYPES):
        return "a layer has no digest, or no size that can be one"
    return f"it holds {kind}"


def check_number(layers: int, uri: str) -> None:
    """Raise NotAnImage for more layers than any tool makes."""
    if layers > LAYERS_MAX:
        raise NotAnImage(
            f"{uri} has {layers} layers",
            why=f"{LAYERS_MAX} is the limit",
            do="Build it again with fewer layers: `podman build --squash-all` makes one.",
        )


def check_texts(manifest: Manifest, uri: str) -> None:
    """Raise NotAnImage for manifests larger than any tool makes them."""
    if sum(map(len, manifest.texts)) > _TEXTS_MAX:
        raise NotAnImage(f"{uri} is not an image", why="its manifests are too large")


def config_digest(manifest: Manifest, uri: str) -> str:
    """Return the digest of an image's config. Raises NotAnImage."""
    config = manifest.content.get("config")
    digest = config.get("digest") if isinstance(config, dict) else None
    if not is_digest(digest):
        raise NotAnImage(f"{uri} is not an image", why="its manifest names no config")
    return str(digest)


def _blob(layer: dict[str, Any]) -> Blob | None:
    digest, size = layer.get("digest"), layer.get("size")
    if is_digest(digest) and isinstance(size, int) and 0 <= size < 1 << 50:
        return Blob(hex_of(str(digest)), size)
    return None
