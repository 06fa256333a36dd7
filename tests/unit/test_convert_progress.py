"""The progress reports of a conversion."""

from __future__ import annotations

import pytest

from hpcimg.convert import progress
from hpcimg.convert.layers import Layer
from hpcimg.convert.progress import Progress
from hpcimg.convert.stream import Stream


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """All reports, without a rate limit."""
    monkeypatch.setattr(progress, "_TELL_EVERY_S", 0.0)
    return []


def test_what_is_read_again_counts_on_the_disk_alone(told: list[tuple[int, int, int]]) -> None:
    layers = [Layer(int, 100, "low"), Layer(int, 50, "high")]
    state = Progress(lambda *numbers: told.append(numbers), layers, apart=True)
    files = Stream(0)
    for number, position, disk_bytes in ((1, 50, 0), (0, 90, 10), (0, 20, 10), (0, 30, 4000)):
        files.disk_bytes = disk_bytes
        state.read(files, number, position)
    assert told == [(50, 300, 0), (140, 300, 10), (140, 300, 4000)]


def test_packing_apart_is_the_other_half(told: list[tuple[int, int, int]]) -> None:
    state = Progress(lambda *numbers: told.append(numbers), [Layer(int, 100, "x")], apart=True)
    state.read(Stream(0), 0, 100)
    for size_bytes in (0, 40, 400):
        state.packed(size_bytes)
    state.end()
    assert told == [(100, 200, 0), (140, 200, 0), (200, 200, 0)]
