"""The cache's disk is small, and an old mksquashfs needs images to be unpacked on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disk import Disk
from tests.faults.invariants import check_images, check_no_leftovers
from tests.parts import images
from tests.parts.images import read_from_image
from tests.parts.ociimages import make_layer, push_image
from tests.parts.oldsquashfs import NodeWithOldSquashfs
from tests.parts.registry import Registry

MIB = 1 << 20
MISSING = NodeWithOldSquashfs.missing() or images.missing() or Registry.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """A registry for all tests."""
    with Registry() as registry:
        yield registry


@pytest.fixture
def node(open_directory: Path, registry: Registry) -> NodeWithOldSquashfs:
    """A node whose cache the account that unpacks can reach."""
    return NodeWithOldSquashfs(open_directory, f"[registry {registry.host}]\ninsecure = yes\n")


def push(registry: Registry, tag: str, files: dict[str, bytes]) -> str:
    """Push an image of these files; return the comment that requests it."""
    push_image(registry, "lab/small", tag, [make_layer(files)])
    return f"container:docker://{registry.host}/lab/small:{tag}"


@pytest.mark.parametrize(
    "files",
    [{"big": b"much of the same " * (4 * MIB)}, {f"n/{n}": b"1" for n in range(600)}],
    ids=["bytes", "inodes"],
)
def test_files_fill_the_disk(
    node: NodeWithOldSquashfs, disk: Disk, registry: Registry, files: dict[str, bytes]
) -> None:
    node.prolog(1, push(registry, "1", files))
    task = node.task(1)
    assert task.code == 1
    assert node.record(1)["class"] == "transient", task.printed
    assert "the disk of this node filled up while" in task.printed
    assert "lab/small:1 was converted" in task.printed
    check_images(node)
    check_no_leftovers(node)
    task = node.stage(2, push(registry, "2", {"a": b"1"}))
    assert read_from_image(task.image, "a") == b"1"
    check_no_leftovers(node)
