"""What a sink tells the parent, and when."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from hpcimg.fetch.contract import Blob, Offer
from hpcimg.fetch.sink import Sink


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


def test_an_answer_is_for_who_asked(descriptor: int) -> None:
    """Answers come in the order of the questions; here the second waits for the first."""
    asked: list[object] = []
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = sinks[number].sha256()

    second = threading.Thread(target=ask, args=(1,))

    def say(what: str, **fields: object) -> None:
        asked.append(what if what == "offer" else fields["layer"])
        if asked[-1] == 0:
            second.start()
            second.join(0.1)

    def answer() -> object:
        question = asked.pop(0)
        return {0: descriptor, 1: descriptor} if question == "offer" else f"digest {question}"

    layers = (Blob("12", 3), Blob("34", 3))
    sinks = Sink(descriptor, say, answer).offer_layers(Offer("", layers=layers))
    # Without turns, the second takes what the first asked for.
    ask(0)
    second.join()
    assert found == {0: "digest 0", 1: "digest 1"}
