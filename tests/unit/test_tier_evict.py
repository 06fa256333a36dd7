"""Which images are evicted from the site tier."""

from __future__ import annotations

import pytest

from hpcimg.tier.evict import Image, plan

NOW = 1e9
DAY = 86400.0


def images(*ages_d: float) -> list[Image]:
    return [Image(f"{n}.sif", 10, NOW - age * DAY) for n, age in enumerate(ages_d)]


@pytest.mark.parametrize(
    ("ages_d", "limit", "read", "going"),
    [
        ((1, 2, 3), 100, "", []),
        ((1, 40, 3), 100, "", ["1.sif"]),  # too old
        ((1, 40, 3), 100, "1", []),  # and read
        ((1, 2, 3, 4), 30, "", ["3.sif", "2.sif"]),  # down to nine tenths of the limit
        ((1, 2, 3, 4), 40, "", []),
        ((1, 2, 3, 4), 30, "3", ["2.sif", "1.sif"]),
        ((0, 0, 0, 0), 10, "", []),  # used a moment ago
        ((-1, -1), 10, "", []),  # in the future
    ],
)
def test_what_goes(ages_d: tuple[float, ...], limit: int, read: str, going: list[str]) -> None:
    found = plan(
        images(*ages_d),
        limit=limit,
        max_age_s=30 * DAY,
        now=NOW,
        read=frozenset(filter(None, [read])),
    )
    assert [image.name for image in found] == going
