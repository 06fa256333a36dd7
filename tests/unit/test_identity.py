"""Keys of images, and inconsistent offers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpcimg.cache import identity
from hpcimg.errors import Damaged
from hpcimg.fetch.contract import LAYERS_MAX, Blob, Offer, bytes_of, text_of
from hpcimg.reference import Reference
from tests.parts.served import sha256

CONFIG = '{"os": "linux"}'
LAYERS = (Blob("1" * 64, 5), Blob("2" * 64, 0))
TAG = Reference("docker", "r.example.org/a:1")


def digest(text: str) -> str:
    return f"sha256:{sha256(bytes_of(text))}"


def manifest(config: str = CONFIG, layers: tuple[Blob, ...] = LAYERS) -> str:
    named = [{"digest": f"sha256:{layer.sha256}"} for layer in layers]
    return json.dumps({"config": {"digest": digest(config)}, "layers": named})


def index(*texts: str) -> str:
    return json.dumps({"manifests": [{"digest": digest(text)} for text in texts]})


def pinned(text: str) -> Reference:
    return Reference("docker", f"r.example.org/a@{digest(text)}")


IMAGE = Offer("v", config=CONFIG, layers=LAYERS, manifests=(manifest(),))
SIF = Offer("v", 9, "1" * 64, manifests=(manifest("{}", LAYERS[:1]),))


# Keys


def test_an_image_in_layers_is_its_config_and_its_layers_in_order() -> None:
    hashed = sha256(f"{sha256(CONFIG.encode())} {'1' * 64} {'2' * 64}".encode())
    assert identity.key_of(IMAGE, "sif") == f"layers-sha256-{hashed}-sif"
    others = (
        IMAGE._replace(config="{}"),
        IMAGE._replace(layers=LAYERS[::-1]),
        IMAGE._replace(layers=LAYERS[:1]),
        IMAGE._replace(layers=(*LAYERS, LAYERS[0])),
        IMAGE._replace(layers=(LAYERS[0], Blob("3" * 64, 0))),
    )
    keys = {identity.key_of(offer, "sif") for offer in others}
    assert len(keys | {identity.key_of(IMAGE, "squashfs"), identity.key_of(IMAGE, "sif")}) == 7


def test_what_the_source_says_beside_it_is_no_part_of_its_name() -> None:
    same = IMAGE._replace(validator="w", manifests=(), sha256="4" * 64)
    assert identity.key_of(same, "sif") == identity.key_of(IMAGE, "sif")


def test_a_file_is_its_own_digest() -> None:
    assert identity.key_of(SIF, "squashfs") == "sha256-" + "1" * 64
    assert identity.key_of(Offer("v", 9), "squashfs") == ""


# Offers


def test_the_manifest_is_what_its_text_says() -> None:
    assert identity.check(IMAGE, TAG) == digest(manifest())
    assert identity.check(SIF, TAG) == digest(SIF.manifests[0])
    assert identity.check(IMAGE._replace(manifests=()), TAG) == ""
    assert identity.check(Offer("etag x"), Reference("https", "h/x.sif")) == ""


def test_bytes_that_are_no_utf8_are_what_is_digested() -> None:
    config = text_of(b'{"author": "M\xfcller"}')
    assert bytes_of(config) == b'{"author": "M\xfcller"}'
    offer = IMAGE._replace(config=config, manifests=(manifest(config),))
    assert identity.check(offer, TAG) == digest(manifest(config))


def test_a_digest_in_the_reference_is_that_of_the_first_manifest() -> None:
    assert identity.check(IMAGE, pinned(manifest()))
    inner = index(manifest())
    outer = index("", inner)
    chain = IMAGE._replace(manifests=(outer, inner, manifest()))
    assert identity.check(chain, pinned(outer)) == digest(manifest())
    assert identity.check(SIF, pinned(SIF.manifests[0]))


@pytest.mark.parametrize(
    "offer",
    [
        IMAGE,
        IMAGE._replace(manifests=()),
        IMAGE._replace(manifests=(manifest(), manifest())),
        SIF,
        Offer("v", 9),
        Offer("v", 9, "1" * 64),
    ],
)
def test_another_digest_than_that_of_the_reference(offer: Offer) -> None:
    with pytest.raises(Damaged, match="is not what was announced"):
        identity.check(offer, pinned(index(manifest())))


@pytest.mark.parametrize("end", ["", "h/b:latest", "sha256:" + "0" * 63])
def test_what_looks_pinned_and_is_not(end: str) -> None:
    with pytest.raises(Damaged):
        identity.check(IMAGE, Reference("docker", f"r.example.org/a@sha256:{'0' * 64}@{end}"))


@pytest.mark.parametrize(
    "changes",
    [
        # Of a manifest that somebody trusts, and other content.
        {"config": "{}"},
        {"layers": LAYERS[::-1]},
        {"layers": (LAYERS[0], Blob("3" * 64, 0))},
        {"layers": LAYERS[:1]},
        {"layers": ()},
        {"layers": (), "sha256": "3" * 64},
        {"manifests": (index("{}"), manifest())},
        {"manifests": ("{}", manifest())},
        {"manifests": (index(manifest()),)},
        # What is none.
        {"manifests": ("",)},
        {"manifests": ("[]",)},
        {"manifests": ("[" * 100_000,)},
        {"manifests": ('{"layers": 1, "config": 2}',)},
        {"manifests": ("\ud800",)},
        {"config": "\ud800"},
    ],
)
def test_what_does_not_fit_together(changes: dict[str, Any]) -> None:
    with pytest.raises(Damaged, match="is not what was announced"):
        identity.check(IMAGE._replace(**changes), TAG)


@pytest.mark.parametrize(
    "changes",
    [
        # Keys are names of files, made by root.
        {"layers": (Blob("../../../../etc/cron.d/x", 1),)},
        {"layers": (Blob("", 1),)},
        {"layers": (Blob("A" * 64, 1),)},
        {"layers": (Blob("1" * 64 + "\n", 1),)},
        {"layers": (), "sha256": "../x"},
        {"layers": (Blob("1" * 64, -1),)},
        {"size_bytes": -1},
        {"layers": (LAYERS[0],) * (LAYERS_MAX + 1)},
        {"validator": "v" * (1 << 20)},
        {"validator": "\ud800"},
        # Only root has images of other nodes.
        {"via": "site"},
        {"via": "peers"},
    ],
)
def test_what_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(Damaged, match="is not what was announced"):
        identity.check(IMAGE._replace(manifests=(), **changes), TAG)
