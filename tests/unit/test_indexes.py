"""Which image of an index is selected, and which manifests are valid."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from hpcimg.errors import NotAnImage, NotFound, WrongArchitecture
from hpcimg.fetch.contract import Blob
from hpcimg.image import ociconfig
from hpcimg.image.architecture import go_name
from hpcimg.sources.oci import manifests
from hpcimg.sources.oci.indexes import for_this_machine
from hpcimg.sources.oci.manifests import INDEX_TYPES, Manifest

HERE = {"architecture": go_name(), "os": "linux"}
OTHER = {"architecture": "s390x", "os": "linux"}
UNKNOWN = {"architecture": "unknown", "os": "unknown"}
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
IMAGE = "application/vnd.oci.image.manifest.v1+json"


class Store:
    """Manifests and configs by their digests; `read` are those that were asked for."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self.read: list[str] = []

    def add(self, content: object) -> str:
        text = json.dumps(content)
        digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        self._texts[digest] = text
        return digest

    def image(self, name: str, config: object = None) -> str:
        """Add an image; return its digest."""
        config = config or {**HERE, "of": name}
        return self.add({"name": name, "config": {"digest": self.add(config)}, "layers": []})

    def index(self, *entries: tuple[str, object]) -> str:
        """Add an index of digests with their platforms."""
        return self.add({"manifests": [{"digest": d, "platform": p} for d, p in entries]})

    def read_manifest(self, digest: str) -> Manifest:
        self.read.append(digest)
        if digest not in self._texts:
            raise NotFound(f"there is no {digest}")
        return manifests.parse(self._texts[digest].encode(), digest, "docker://x")

    def read_blob(self, digest: str) -> str:
        return self._texts[digest]

    def chosen(self, digest: str) -> Any:
        """Return the name of the image that is taken."""
        found = for_this_machine(self, self.read_manifest(digest), "docker://x")
        return found.content["name"]


@pytest.fixture
def store() -> Store:
    return Store()


def test_an_index_in_an_index(store: Store) -> None:
    attestation = store.image("attestation", UNKNOWN)
    inner = store.index((attestation, UNKNOWN), (store.image("right"), HERE))
    assert store.chosen(store.index((inner, HERE))) == "right"
    assert store.chosen(store.index((attestation, None), (inner, None))) == "right"
    # One that has nothing for this machine ends nothing.
    empty = store.index((store.image("other", OTHER), OTHER))
    assert store.chosen(store.index((empty, HERE), (inner, HERE))) == "right"


def test_an_entry_without_a_platform_is_what_its_config_says(store: Store) -> None:
    other, right = store.image("other", OTHER), store.image("right")
    assert store.chosen(store.index((other, None), (right, {}))) == "right"
    # What says so is taken first, and nothing else is read.
    store.read.clear()
    top = store.index((other, None), (right, HERE))
    assert store.chosen(top) == "right"
    assert store.read == [top, right]


def test_what_is_no_image_is_passed_over(store: Store) -> None:
    """Signatures and lists of parts: their config is often empty, and then means any machine."""
    config = {"digest": store.add({}), "mediaType": "application/vnd.oci.empty.v1+json"}
    signature = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}
    listed = store.add({"name": "sbom", "config": config, "layers": [signature]})
    cleared = f"sha256:{'1' * 64}"
    right = store.image("right")
    assert store.chosen(store.index((listed, None), (cleared, None), (right, None))) == "right"
    with pytest.raises(NotFound):
        store.chosen(store.index((listed, None), (cleared, None)))
    with pytest.raises(NotFound):
        store.chosen(store.index((cleared, HERE), (right, None)))


def sif_of(*layers: object) -> Blob | None:
    return manifests.sif_layer(Manifest("", {"layers": list(layers)}))


def test_a_sif_file_is_told_by_its_type_or_its_name() -> None:
    known = {"mediaType": "application/vnd.sylabs.sif.layer.v1.sif"}
    digest = {"digest": "sha256:" + "1" * 64, "size": 5}
    # What `oras push registry/x:1 x.sif` makes of it.
    pushed = {"mediaType": "application/vnd.oci.image.layer.v1.tar", **digest}
    titled = {**pushed, "annotations": {"org.opencontainers.image.title": "dir/X.SIF"}}
    squashfs = {**pushed, "annotations": {"org.opencontainers.image.title": "x.sqsh"}}
    assert sif_of({**known, **digest}) == sif_of(titled) == sif_of(squashfs) == Blob("1" * 64, 5)
    assert sif_of({"mediaType": "text/plain"}, {**known, **digest}) == Blob("1" * 64, 5)
    for other in ([pushed], [titled, pushed], [{**titled, "annotations": {}}], [], [None]):
        assert sif_of(*other) is None


def test_what_an_index_has_is_said(store: Store) -> None:
    windows = {"architecture": go_name(), "os": "windows", "os.version": "10.0"}
    entries = [
        (store.image("a", OTHER), OTHER),
        (store.image("b", UNKNOWN), UNKNOWN),
        (store.image("w", windows), windows),
        (store.image("c", {**OTHER, "architecture": "riscv64"}), None),
        (store.add({"layers": []}), None),
    ]
    with pytest.raises(WrongArchitecture) as caught:
        store.chosen(store.index(*entries))
    there = f"{go_name()} (windows), riscv64, s390x"
    assert caught.value.why == f"it is for {there}, this machine is {go_name()}"
    with pytest.raises(WrongArchitecture, match="it is for none"):
        store.chosen(store.index())


def test_an_index_without_end_is_left(store: Store) -> None:
    deep = store.image("right")
    for _ in range(5):
        deep = store.index((deep, HERE))
    with pytest.raises(NotAnImage, match="nested too deeply"):
        store.chosen(deep)
    many = [(store.image(str(n), {**OTHER, "n": n}), None) for n in range(40)]
    with pytest.raises(NotAnImage, match="of the first 32 entries"):
        store.chosen(store.index(*many))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"layers": [], "manifests": []}, "an image and an index at once"),
        ({"config": {}, "manifests": []}, "an image and an index at once"),
        ({"mediaType": IMAGE, "manifests": []}, "its manifest is not a application/vnd.oci"),
        ({"mediaType": INDEX_TYPES[1], "layers": []}, "is not a application/vnd.docker"),
        ({"schemaVersion": 1, "fsLayers": [], "history": []}, "schema 1"),
        ({"config": {}}, "names no layers"),
        ({"manifests": {}}, "names no layers"),
        ([], "not a JSON object"),
    ],
)
def test_a_manifest_that_is_none_or_two(content: object, words: str) -> None:
    with pytest.raises(NotAnImage, match=words):
        manifests.parse(json.dumps(content).encode(), "", "docker://x")


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32"])
def test_json_is_utf_8(coding: str) -> None:
    text = json.dumps({"layers": [], "x": "ä"}, ensure_ascii=False)
    with pytest.raises(NotAnImage, match=r"its manifest cannot be read: it (is|begins)"):
        manifests.parse(text.encode(coding), "", "docker://x")
    with pytest.raises(NotAnImage, match=r"the configuration of .* cannot be used: it"):
        ociconfig.platform_in(text.encode(coding).decode(errors="replace"), "docker://x")


def layers_of(*layers: dict[str, object]) -> tuple[Blob, ...]:
    return manifests.layers(Manifest("", {"layers": list(layers)}), "docker://x")


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.container.image.rootfs.diff+x-gtar",
    ],
)
def test_layers_of_all_kinds(kind: str) -> None:
    digest = "sha256:" + "1" * 64
    layer = {"mediaType": kind, "digest": digest, "size": 0, "urls": ["https://h/l"]}
    [blob] = layers_of(layer)
    assert blob == Blob("1" * 64, 0)
    why = manifests.why_missing(Manifest("", {"layers": [5, layer]}), blob)
    assert "foreign layer at https://h/l" in why


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"digest": "sha512:" + "1" * 128}, "a sha512 digest"),
        ({"mediaType": f"{LAYER}+encrypted"}, "are encrypted"),
        ({"mediaType": None}, "it holds None"),
        ({"size": "5"}, "no size that can be one"),
        ({"size": -1}, "no size that can be one"),
    ],
)
def test_layers_that_cannot_be_had(fields: dict[str, object], words: str) -> None:
    with pytest.raises(NotAnImage, match=words):
        layers_of({"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 1, **fields})
