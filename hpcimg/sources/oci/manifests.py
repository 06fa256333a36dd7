"""What a manifest says: whether it is a SIF file or layers, and for which machine.

OCI Image Specification 1.1, Docker's image manifest version 2 schema 2. All of it
was sent by somebody: nothing in it is taken to be of the type that it should be.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from hpcimg.errors import NotAnImage, WrongArchitecture
from hpcimg.fetch.contract import Blob
from hpcimg.image.architecture import go_name

# The second is a spelling that early clients wrote.
_SIF_TYPES = (
    "application/vnd.sylabs.sif.layer.v1.sif",
    "appliciation/vnd.sylabs.sif.layer.tar",
)
_LAYER_TYPES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.diff.")
_CONFIG_MAX = 1 << 20  # it goes from process to process; real ones have some KiB
_LAYERS_MAX = 250  # the kernel hands over so many open files at once; Docker makes up to 127
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Manifest(NamedTuple):
    """A manifest with the digest of its bytes."""

    digest: str
    content: dict[str, Any]


def is_digest(value: object) -> bool:
    """Tell whether this is a sha256 digest as manifests spell it."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def hex_of(digest: str) -> str:
    """Return the digits of a digest."""
    return digest.removeprefix("sha256:")


def digest_for_this_machine(manifest: Manifest, uri: str) -> str | None:
    """Return whom an index names for this machine's processor, None where it is no index.

    Raises WrongArchitecture.
    """
    entries = manifest.content.get("manifests")
    if not isinstance(entries, list):
        return None
    found: dict[str, str] = {}
    for entry in entries:
        platform = entry.get("platform") if isinstance(entry, dict) else None
        if isinstance(platform, dict) and is_digest(entry.get("digest")):
            system = platform.get("os") or "linux"
            name = str(platform.get("architecture"))
            found.setdefault(name if system == "linux" else f"{name} ({system})", entry["digest"])
    if go_name() not in found:
        raise WrongArchitecture(
            f"{uri} has no image for this machine",
            why=f"it is for {', '.join(sorted(found)) or 'none'}, this machine is {go_name()}",
        )
    return found[go_name()]


def sif_layer(manifest: Manifest) -> Blob | None:
    """Return the SIF file that a manifest holds, if it holds one."""
    layers = manifest.content.get("layers")
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict) and layer.get("mediaType") in _SIF_TYPES:
            return _blob(layer)
    return None


def layers(manifest: Manifest, uri: str) -> tuple[Blob, ...]:
    """Return an image's layers, the lowest first. Raises NotAnImage."""
    listed = manifest.content.get("layers")
    if not isinstance(listed, list) or not listed:
        old = manifest.content.get("schemaVersion") == 1
        raise NotAnImage(
            f"{uri} is not an image",
            why="its manifest is of the old form, schema 1" if old else "it has no layers",
            do="Push it again with a current tool." if old else "",
        )
    check_number(len(listed), uri)
    found = []
    for layer in listed:
        kind = str(layer.get("mediaType")) if isinstance(layer, dict) else ""
        blob = _blob(layer) if kind.startswith(_LAYER_TYPES) else None
        if blob is None or "encrypted" in kind:
            raise NotAnImage(
                f"{uri} is not an image for Linux",
                why=f"it holds {kind[:100] or 'a layer without a type'}",
                do="hpcimg takes SIF files and images in layers.",
            )
        found.append(blob)
    if len({blob.sha256 for blob in found}) != len(set(found)):
        raise NotAnImage(f"{uri} is not an image", why="it names one layer with two sizes")
    return tuple(found)


def check_number(layers: int, uri: str) -> None:
    """Raise NotAnImage where these are more layers than any tool makes."""
    if layers > _LAYERS_MAX:
        raise NotAnImage(f"{uri} has {layers} layers", why=f"{_LAYERS_MAX} is the limit")


def config_digest(manifest: Manifest, uri: str) -> str:
    """Return where an image's config is. Raises NotAnImage."""
    config = manifest.content.get("config")
    digest = config.get("digest") if isinstance(config, dict) else None
    if not is_digest(digest):
        raise NotAnImage(f"{uri} is not an image", why="its manifest names no config")
    return str(digest)


def parse_config(config: str, uri: str) -> dict[str, Any]:
    """Read an image's config, and see that it is for this machine.

    Raises NotAnImage, WrongArchitecture.
    """
    if len(config) > _CONFIG_MAX:
        raise NotAnImage(f"{uri} is not an image", why="its config is too large")
    try:
        content = json.loads(config)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise NotAnImage(f"{uri} is not an image", why="its config is no JSON object")
    system, machine = content.get("os") or "linux", content.get("architecture") or go_name()
    if (system, machine) != ("linux", go_name()):
        raise WrongArchitecture(
            f"{uri} has no image for this machine",
            why=f"it is for {machine} ({system}), this machine is {go_name()} (linux)"[:200],
        )
    return content


def _blob(layer: dict[str, Any]) -> Blob | None:
    digest, size = layer.get("digest"), layer.get("size")
    if is_digest(digest) and isinstance(size, int) and 0 < size < 1 << 50:
        return Blob(hex_of(str(digest)), size)
    return None
