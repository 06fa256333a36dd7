"""The identity of an image: the name of its content, and whether its offer is consistent.

The process that fetches may be controlled by the server that it talks to, so claimed digests do not
count. A key consists of digests that this process computes itself, or compares with the bytes
before anything is published; what an offer says about manifests is derived from their texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from hpcimg.errors import Damaged
from hpcimg.fetch.contract import LAYERS_MAX, MIRROR, ORIGIN, Offer, Whole, bytes_of
from hpcimg.reference import Reference

_DIGITS = re.compile(r"[0-9a-f]{64}")
_MADE = re.compile(r"layers-sha256-[0-9a-f]{64}-([a-z]+)")
_VALIDATOR_MAX = 16 << 10  # it is stored; an ETag is as long as a server's header may be
_ALGORITHM = "sha256:"


def key_of(offer: Offer, image_format: str) -> str:
    """Return the key of a checked offer, "" if it can only be computed from the whole file.

    An image in layers is identified by its config, all of its layers in order, and the format that
    it is converted to.
    """
    if not offer.layers:
        return f"sha256-{offer.sha256}" if offer.sha256 else ""
    parts = [_sha256(offer.config), *(layer.sha256 for layer in offer.layers)]
    return f"layers-sha256-{_sha256(' '.join(parts))}-{image_format}"


def check(offer: Offer, reference: Reference) -> str:
    """Return the digest of the manifest that describes an offer, "" if there is none.

    Digests are checked for their form, since keys become file names. A digest in the reference must
    be that of the first manifest, each manifest must name the next, and the last one must name the
    config and the layers, or the file. Raises Damaged.
    """
    try:
        _check_form(offer)
        wanted = reference.rest.rpartition("@")[2] if reference.pinned else None
        return _follow(offer, wanted)
    except (ValueError, RecursionError) as error:  # not text, or not JSON
        raise Damaged(f"{reference.uri} is not what was announced", why=str(error)) from None


def check_whole(offer: Whole, image_format: str, reference: Reference) -> str:
    """Return the key of an image from another node, as it would be if fetched here.

    Raises Damaged.
    """
    made = _MADE.fullmatch(offer.key)
    as_it_came = offer.key == f"sha256-{offer.sha256}"
    if _DIGITS.fullmatch(offer.sha256) and (as_it_came or (made and made[1] == image_format)):
        return offer.key
    raise Damaged(
        f"{reference.uri} is not what was announced", why="another node has it under a wrong name"
    )


def _check_form(offer: Offer) -> None:
    if offer.via not in (ORIGIN, MIRROR):  # it is a label in statistics
        raise ValueError("its origin is unknown")
    digests = [layer.sha256 for layer in offer.layers]
    digests += [offer.sha256] if offer.sha256 else []
    if not all(map(_DIGITS.fullmatch, digests)):
        raise ValueError("it has a malformed digest")
    if len(offer.layers) > LAYERS_MAX or len(bytes_of(offer.validator)) > _VALIDATOR_MAX:
        raise ValueError("it is larger than an image can be")
    if min([offer.size_bytes or 0, *(layer.size_bytes for layer in offer.layers)]) < 0:
        raise ValueError("it has a negative size")


def _follow(offer: Offer, wanted: str | None) -> str:
    digest, content = "", {}
    named = None if wanted is None else {wanted}
    for text in offer.manifests:
        digest = _ALGORITHM + _sha256(text)
        if named is not None and digest not in named:
            raise ValueError(f"nothing names the manifest {digest}")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("its manifest is not a JSON object")  # noqa: TRY004
        named = set(_digests(content.get("manifests")))
    if wanted is not None and not digest:
        raise ValueError(f"nothing shows that it is {wanted}")
    if not digest:
        return ""
    layers = _digests(content.get("layers"))
    if offer.layers:
        parts = _digests([content.get("config")]) + layers
        found = [_sha256(offer.config), *(layer.sha256 for layer in offer.layers)]
        fits = parts == [_ALGORITHM + part for part in found]
    else:
        fits = bool(offer.sha256) and _ALGORITHM + offer.sha256 in layers
    if not fits:
        raise ValueError("its manifest names other content")
    return digest


def _digests(entries: Any) -> list[str]:
    """Return the digests in descriptors, "" for an invalid one."""
    return [
        str(entry.get("digest", "")) if isinstance(entry, dict) else ""
        for entry in (entries if isinstance(entries, list) else [])
    ]


def _sha256(text: str) -> str:
    return hashlib.sha256(bytes_of(text)).hexdigest()
