"""oras:// : a SIF image kept as an artifact in an OCI registry."""

from __future__ import annotations

from typing import Any

from hpcimg.errors import NotAnImage
from hpcimg.fetching import Offer, Settings
from hpcimg.reference import Reference
from hpcimg.sink import Sink
from hpcimg.sources.registry import Manifest, Registry, is_digest, parse_name
from hpcimg.transfer import open_session

# The second is a spelling that early clients wrote.
_SIF_TYPES = (
    "application/vnd.sylabs.sif.layer.v1.sif",
    "appliciation/vnd.sylabs.sif.layer.tar",
)


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch the one SIF layer of an artifact; see `hpcimg.sources`."""
    name = parse_name(reference.rest)
    with open_session() as session:
        registry = Registry(session, name, sink, settings, uri=reference.uri)
        return download_sif(registry, sink, uri=reference.uri, validator=validator)


def download_sif(
    registry: Registry,
    sink: Sink,
    *,
    uri: str,
    validator: str = "",
    known_as: str = "",
) -> bool:
    """Fetch the SIF that a registry has, for this machine where there are several.

    `known_as` is the validator to keep where it is not the manifest's digest.
    """
    manifest = registry.manifest(validator)
    if manifest is None:
        return True
    digest, size = _sif_layer(registry.for_this_machine(manifest), uri)
    sink.offer(Offer(known_as or manifest.digest, size, digest.removeprefix("sha256:")))
    return registry.download(digest, sink)


def _sif_layer(manifest: Manifest, uri: str) -> tuple[str, int]:
    """Return digest and size of the SIF layer. Raises NotAnImage."""
    layers = manifest.content.get("layers")
    found: list[Any] = layers if isinstance(layers, list) else []
    for layer in found:
        if isinstance(layer, dict) and layer.get("mediaType") in _SIF_TYPES:
            digest, size = layer.get("digest"), layer.get("size")
            if is_digest(digest) and isinstance(size, int) and size > 0:
                return str(digest), size
    raise NotAnImage(
        f"{uri} holds no SIF image",
        why="its manifest names no SIF layer",
        do="Push the image with `apptainer push IMAGE.sif oras://...`.",
    )
