"""What a sink tells the parent, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hpcimg.fetching import Blob, Offer
from hpcimg.sink import Sink


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = os.memfd_create("image")
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("in_layers", [False, True])
def test_more_than_was_announced_is_told_at_once(descriptor: int, in_layers: bool) -> None:
    said: list[tuple[str, object]] = []
    sink = Sink(
        descriptor,
        lambda what, **fields: said.append((what, fields.get("bytes"))),
        lambda: {0: descriptor},
    )
    if in_layers:
        offer = Offer("", None, "", manifest="12", layers=(Blob("34", 3),))
        sink = sink.offer_layers(offer)[0]
    else:
        sink.offer(Offer("", 3, ""))
    for data in (b"12", b"3", b"4", b"5"):
        sink.write(data)
    # The first word is always told, and then nothing for a while.
    assert said == [("offer", None), ("progress", 2), ("progress", 4), ("progress", 5)]
