"""How many downloads there are at once, by what they bring."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpcimg.http.pace import Pace


def settled(most: int, rate: Callable[[int], float]) -> tuple[int, float]:
    """Return how many it ends with, and after how many seconds, if so many bring this rate."""
    now = position = 0.0
    pace = Pace(most, now)
    while not pace.settled:
        assert now < 20
        now += 0.5
        position += 0.5 * rate(pace.at_once)
        pace.look(now, int(position))
    return pace.at_once, now


@pytest.mark.parametrize(
    ("most", "rate", "ends"),
    [
        (4, lambda _: 1e6, (2, 2.0)),  # the link is full with one
        (4, lambda number: min(number, 2) * 1e6, (2, 3.0)),
        (4, lambda number: number * 1e6, (4, 3.0)),  # each is limited
        (4, lambda number: min(number, 3) * 1e6, (4, 3.0)),  # the most, and no more to try
        (2, lambda number: number * 1e6, (2, 1.0)),
        (1, lambda number: number * 1e6, (1, 0.0)),
    ],
)
def test_more_at_once_as_long_as_they_bring_more(
    most: int, rate: Callable[[int], float], ends: tuple[int, float]
) -> None:
    assert settled(most, rate) == ends


def test_nothing_comes_at_all() -> None:
    """There may be something to be had from where the next layers are."""
    assert settled(4, lambda _: 0.0)[0] == 4
