"""When parts of a file are written back to the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcimg import writeback
from hpcimg.fetch.contract import Blob, Offer
from hpcimg.fetch.sink import Sink
from tests.parts.parents import Parent

STEP = 8 << 20


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The parts that are begun, in order."""
    parts: list[tuple[int, int]] = []
    monkeypatch.setattr(
        writeback, "begin", lambda _, offset, length: parts.append((offset, length))
    )
    return parts


def test_each_part_once_and_what_is_written_anew_again(begun: list[tuple[int, int]]) -> None:
    early = writeback.Writeback(0)
    for position in (1, STEP - 1, STEP, STEP + 1, 3 * STEP):
        early.reached(position)
    assert begun == [(0, STEP), (STEP, 2 * STEP)]
    early.reached(5)
    early.reached(STEP + 5)
    assert begun[2:] == [(5, STEP)]


def test_an_image_and_no_layers(begun: list[tuple[int, int]], tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    parent = Parent({0: descriptor})
    sink = Sink(descriptor, parent)
    [layer] = sink.offer_layers(Offer("", None, "", layers=(Blob("34", STEP),))).values()
    layer.write(bytes(STEP))
    assert begun == []
    sink.write(bytes(STEP))
    assert begun == [(0, STEP)]
    os.close(descriptor)


def test_the_kernel_knows_the_call(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(STEP))
    with path.open("rb") as file:
        writeback.begin(file.fileno())
        assert writeback._sync_file_range(file.fileno(), 0, 0, writeback._WRITE) == 0
