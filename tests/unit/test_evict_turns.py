"""A long eviction lets others have the lock in between, with the same result."""

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
        publish(layout, number)
    return layout


def publish(layout: Layout, number: int) -> None:
    digest = f"{number:064}"
    entry = store.Entry(f"sha256-{digest}", "sif", digest, 100, "", (), 1.0)
    with store.unfinished(layout, "x") as (path, file):
        store.publish(layout, entry, path, file)


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


@pytest.mark.parametrize("reason", ["bytes", "number", "disk", "inodes"])
def test_what_the_sizes_alone_say_hides_no_limit(
    layout: Layout, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for Epilog nor for a job; where nothing has to go, no record is read."""
    enough = LIMITS._replace(max_size=2000, high=1500, low=900)
    limits = {
        "bytes": enough._replace(max_size=900, high=900, low=900),
        "number": enough._replace(max_images=9),
        "disk": enough._replace(min_free=evict.free_on_disk(layout) + (1 << 40)),
        "inodes": enough._replace(min_free_files=(evict.free_files(layout) or 0) + (1 << 40)),
    }[reason]
    soon = time.monotonic() + 30
    if reason in ("bytes", "number"):
        assert evict.make_room(layout, limits, 0, what="x", deadline=soon)
        assert len(list(store.entries(layout))) == 9
        publish(layout, 10)
    else:
        with pytest.raises(NoRoom):
            evict.make_room(layout, limits, 0, what="x", deadline=soon)
    report = evict.trim(layout, limits, time_s=30, in_full=False)
    assert len(report.evicted) == (1 if reason in ("bytes", "number") else 10)

    monkeypatch.setattr(evict, "candidates", lambda *_: pytest.fail("records are read"))
    assert evict.trim(layout, enough, time_s=30, in_full=False).evicted == ()
    assert evict.make_room(layout, enough, 0, what="x", deadline=soon)
