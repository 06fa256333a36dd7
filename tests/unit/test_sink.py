"""The reports of a sink to its parent."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hpcimg.fetch.contract import Blob, Offer
from hpcimg.fetch.sink import Sink
from tests.parts.parents import Parent


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = os.memfd_create("image")
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("in_layers", [False, True])
def test_more_than_was_announced_is_told_at_once(descriptor: int, in_layers: bool) -> None:
    parent = Parent({0: descriptor})
    sink = Sink(descriptor, parent)
    if in_layers:
        offer = Offer("", None, "", layers=(Blob("34", 3),))
        sink = sink.offer_layers(offer)[0]
    else:
        sink.offer(Offer("", 3, ""))
    for data in (b"12", b"3", b"4", b"5"):
        sink.write(data)
    # The first word is always told, and then nothing for a while.
    assert [done for _, done, _ in parent.heard("moved")] == [2, 4, 5]
    assert parent.said[0][0] == "offer"
