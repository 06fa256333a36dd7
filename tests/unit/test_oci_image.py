"""In which order the layers of an image are fetched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcimg.fetch.contract import ORIGIN, Blob
from hpcimg.fetch.sink import Sink
from hpcimg.image.architecture import go_name
from hpcimg.sources.oci import image, manifests
from hpcimg.sources.oci.manifests import Manifest
from tests.parts.ociimages import CONFIG
from tests.parts.parents import Parent
from tests.parts.registry import MANIFEST

MIB = 1 << 20


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Content:
    """An image of layers of these sizes. `asked` are their numbers, in the order of downloads."""

    via = ORIGIN

    def __init__(self, sizes: Sequence[int]) -> None:
        self.asked: list[int] = []
        self.config = json.dumps({"architecture": go_name(), "os": "linux"})
        blobs = [(CONFIG, digest(self.config.encode()), len(self.config))]
        layer = "application/vnd.oci.image.layer.v1.tar"
        blobs += [(layer, f"{number:064}", size) for number, size in enumerate(sizes)]
        config, *layers = [
            {"mediaType": kind, "digest": f"sha256:{sha256}", "size": size}
            for kind, sha256, size in blobs
        ]
        text = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        self.text = json.dumps(text).encode()

    def manifest(self, known: str = "") -> Manifest:
        return manifests.parse(self.text, f"sha256:{digest(self.text)}", "docker://x")

    def read_manifest(self, digest: str) -> Manifest:
        raise AssertionError

    def read_blob(self, digest: str) -> str:
        return self.config

    def download(self, blob: Blob, sink: Sink) -> bool:
        self.asked.append(int(blob.sha256))
        return False


@pytest.mark.parametrize(
    ("at_once", "sizes", "order"),
    [
        (1, [9, 10, 8, 7], [3, 2, 1, 0]),  # as they are converted
        (4, [9, 10, 8, 7], [1, 3, 2, 0]),  # the largest has the most time
        (4, [9], [0]),
    ],
)
def test_the_order_of_layers(
    tmp_path: Path, at_once: int, sizes: list[int], order: list[int]
) -> None:
    content = Content([size * MIB for size in sizes])
    files = [os.open(tmp_path / f"{number}", os.O_CREAT) for number in range(len(sizes))]
    parent = Parent(dict(enumerate(files)))
    assert not image.fetch_from(content, Sink(-1, parent), uri="docker://x", at_once=at_once)
    assert content.asked == order
    # Each is closed here, and said to be complete.
    assert sorted(parent.heard("complete")) == [(number,) for number in range(len(sizes))]
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
