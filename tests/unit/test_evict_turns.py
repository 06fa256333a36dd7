"""Who evicts for long lets others have the lock in between, and comes to the same end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcimg.cache import directories, evict, store
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Limits
from hpcimg.errors import NoRoom

LIMITS = Limits(max_size=1000, high=900, low=500, min_free=0, min_age_s=0.0)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Ten images of a hundred bytes."""
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    for number in range(10):
        digest = f"{number}" * 64
        entry = store.Entry(f"sha256-{digest}", "sif", digest, 100, "", (), 1.0)
        with store.unfinished(layout, "x") as (path, file):
            store.publish(layout, entry, path, file)
    return layout


def test_the_epilog_takes_turns(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evict, "_TURN_S", 0.001)
    report = evict.trim(layout, LIMITS, time_s=30)
    assert report.plan.wanted_bytes == 500
    assert report.freed_bytes == 500
    assert len(list(store.entries(layout))) == 5


def test_a_job_takes_turns(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evict, "_TURN_S", 0.001)
    deadline = time.monotonic() + 30
    turns = 0
    while not evict.make_room(layout, LIMITS, 800, what="x", deadline=deadline):
        turns += 1
    assert len(list(store.entries(layout))) == 2
    assert turns < 9


def test_a_turn_ends_with_the_time_of_the_job(layout: Layout) -> None:
    with pytest.raises(NoRoom):
        evict.make_room(layout, LIMITS, 800, what="x", deadline=time.monotonic() - 1)
