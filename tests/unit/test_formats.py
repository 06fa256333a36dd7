"""Recognizing images by their bytes: real, truncated, wrong and hostile ones."""

from __future__ import annotations

import contextlib
import os
import platform
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.errors import Damaged, HpcimgError, NotAnImage, WrongArchitecture
from hpcimg.image.formats import Image, identify
from tests.parts import images

pytestmark = pytest.mark.skipif(bool(images.missing()), reason=images.missing() or "-")

LAUNCH_LINE = b"#!/usr/bin/env run-singularity\n"
TABLE = 4096  # where tests/parts/images.py puts the descriptors
Look = Callable[..., Image]


@pytest.fixture(scope="module")
def sif(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sif") / "x.sif"
    return images.make_sif(path, {"hello": b"world"}).read_bytes()


@pytest.fixture(scope="module")
def squashfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("squashfs") / "x.squashfs"
    return images.make_squashfs(path, {"hello": b"world"}).read_bytes()


@pytest.fixture(scope="module")
def look() -> Iterator[Look]:
    """What identify() says of some bytes."""
    descriptor = os.memfd_create("image")

    def look(data: bytes, **options: str) -> Image:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)
        return identify(descriptor, "the file", **options)

    yield look
    os.close(descriptor)


def put(data: bytes, offset: int, layout: str, *values: object) -> bytes:
    """Return the data with other values at an offset."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)


# What is an image


def test_sif(look: Look, sif: bytes) -> None:
    assert look(sif) == Image("sif", platform.machine())


def test_more_bytes_than_the_header_promises(look: Look, sif: bytes, squashfs: bytes) -> None:
    assert look(sif + bytes(4096)).extension == "sif"
    assert look(squashfs + bytes(4096)).extension == "squashfs"


@pytest.mark.parametrize("compression", ["gzip", "zstd", "xz", "lz4"])
def test_squashfs(look: Look, tmp_path: Path, compression: str) -> None:
    path = images.make_squashfs(tmp_path / "x", {"a": b"b"}, compression=compression)
    assert look(path.read_bytes()) == Image("squashfs", "")


def test_the_oldest_images_have_a_launch_line_before_squashfs(look: Look, squashfs: bytes) -> None:
    assert len(LAUNCH_LINE) == 31
    assert look(LAUNCH_LINE + squashfs) == Image("squashfs", "")


@pytest.mark.parametrize(
    ("code", "machine"),
    [("amd64", "x86_64"), ("arm64", "aarch64"), ("ppc64le", "ppc64le"), ("s390x", "s390x")],
)
def test_architectures(look: Look, tmp_path: Path, code: str, machine: str) -> None:
    data = images.make_sif(tmp_path / "x.sif", {"a": b"b"}, arch=code).read_bytes()
    assert look(data, machine=machine) == Image("sif", machine)
    with pytest.raises(WrongArchitecture, match=f"built for {machine}, this machine is mips"):
        look(data, machine="mips")


def test_the_root_partition_says_what_it_is_for(look: Look, sif: bytes) -> None:
    # An image of several architectures says "unknown" in its header.
    assert look(put(sif, 45, "3s", b"99"), machine=platform.machine()).extension == "sif"
    unknown = put(put(sif, 45, "3s", b"99"), TABLE + 585 - 384 + 8, "3s", b"99")
    assert look(unknown, machine="anything") == Image("sif", "")


def test_a_root_partition_that_no_runtime_mounts(look: Look, sif: bytes) -> None:
    begin = sif.index(b"hsqs")
    with pytest.raises(NotAnImage, match=r"root file system in the file .* magic number"):
        look(put(sif, begin, "4s", b"junk"))
    with pytest.raises(NotAnImage, match="longer than its partition"):
        look(put(sif, begin + 40, "<Q", len(sif)))
    # Nothing is known of the content of others, such as ext3.
    ext3 = put(sif, TABLE + 585 - 384, "<i", 2)
    assert look(put(ext3, begin, "4s", b"junk")).extension == "sif"


def test_a_second_root_partition(look: Look, sif: bytes) -> None:
    twice = put(sif, TABLE + 585, "585s", sif[TABLE : TABLE + 585])
    with pytest.raises(NotAnImage, match="a SIF file with 2 root file systems"):
        look(twice)


# What is truncated


def test_sif_cut_short_anywhere(look: Look, sif: bytes) -> None:
    for length in (42, 43, 127, 128, 4095, 4096, 4097, 20_000, len(sif) - 1):
        with pytest.raises(Damaged, match=f"the file is truncated: .* {length} arrived"):
            look(sif[:length])


def test_squashfs_cut_short_anywhere(look: Look, squashfs: bytes) -> None:
    (used,) = struct.unpack_from("<Q", squashfs, 40)
    for before in (b"", LAUNCH_LINE):
        for length in (4, 95, 96, 200, used - 1):
            with pytest.raises(Damaged, match="the file is truncated"):
                look(before + squashfs[:length])
    assert look(squashfs[:used]).extension == "squashfs"


# What is no image


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html><body>Limit reached</body></html>", "it is a web page"),
        (b"\r\n  <HTML>", "it is a web page"),
        (b'<?xml version="1.0"?><Error/>', "it is a web page"),
        (b'{"errors": []}', "it is JSON text"),
        (b"\x1f\x8b\x08\0", "it is a gzip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "`git lfs pull`"),
        (b"\x7fELF", "neither the SIF nor the squashfs magic number"),
        (LAUNCH_LINE, "neither the SIF nor the squashfs magic number"),
        (bytes(10_000), "neither the SIF nor the squashfs magic number"),
        (b"sqsh" + bytes(200), "neither the SIF nor the squashfs magic number"),
    ],
)
def test_no_image_at_all(look: Look, data: bytes, why: str) -> None:
    with pytest.raises(NotAnImage) as caught:
        look(data)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (88, "<q", 0),
        (88, "<q", -1),
        (88, "<q", 4097),
        (88, "<q", 2**62),
        (96, "<q", 0),
        (96, "<q", 127),
        (96, "<q", -4096),
        (TABLE + 17, "<q", -1),
        (TABLE + 25, "<q", -1),
        (TABLE + 25, "<q", -(2**63)),
        # Without the root file system: unused, something else, of another kind.
        (TABLE + 4, "?", False),
        (TABLE, "<i", 0x4005),
        (TABLE + 585 - 384 + 4, "<i", 3),
    ],
)
def test_sif_that_lies(look: Look, sif: bytes, offset: int, layout: str, value: object) -> None:
    with pytest.raises(NotAnImage, match="SIF file"):
        look(put(sif, offset, layout, value))


@pytest.mark.parametrize(
    ("offset", "value"),
    [(88, 4096), (96, 2**62), (96, 2**63 - 1), (TABLE + 17, 2**63 - 1), (TABLE + 25, 2**63 - 1)],
)
def test_sif_that_promises_too_much(look: Look, sif: bytes, offset: int, value: int) -> None:
    with pytest.raises(Damaged, match="truncated"):
        look(put(sif, offset, "<q", value))


@pytest.mark.parametrize(
    ("offset", "layout", "value", "error"),
    [
        (28, "<H", 3, NotAnImage),
        (30, "<H", 1, NotAnImage),
        (40, "<Q", 0, NotAnImage),
        (40, "<Q", 95, NotAnImage),
        (40, "<Q", 2**64 - 1, Damaged),
    ],
)
def test_squashfs_that_lies(
    look: Look, squashfs: bytes, offset: int, layout: str, value: int, error: type[HpcimgError]
) -> None:
    with pytest.raises(error):
        look(put(squashfs, offset, layout, value))


EXPLAINED = (NotAnImage, Damaged, WrongArchitecture)
STARTS = st.sampled_from([b"", b"hsqs", LAUNCH_LINE + b"hsqs", bytes(32) + b"SIF_MAGIC\0"])


@given(start=STARTS, rest=st.binary(max_size=2000))
def test_no_bytes_are_a_surprise(look: Look, start: bytes, rest: bytes) -> None:
    with contextlib.suppress(*EXPLAINED):
        look(start + rest)


@given(offset=st.integers(0, TABLE + 2 * 585), junk=st.binary(min_size=1, max_size=8))
def test_no_change_to_an_image_is_a_surprise(
    look: Look, sif: bytes, offset: int, junk: bytes
) -> None:
    changed = sif[:offset] + junk + sif[offset + len(junk) :]
    with contextlib.suppress(*EXPLAINED):
        look(changed)
