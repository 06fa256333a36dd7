"""Limits on files that users' requests create: one user's displace only that user's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hpcimg.cache import bounds, directories
from hpcimg.cache.paths import Layout
from hpcimg.locks import held


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(bounds, "SHARED", 40)
    monkeypatch.setattr(bounds, "PRIVATE", 20)
    monkeypatch.setattr(bounds, "LOCKS", 10)
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    for owner in ("all", "1000"):
        os.mkdir(f"{layout.hot}/{owner}")
    return layout


def fill(directory: str, prefix: str, count: int) -> None:
    """Make files, each a second younger than the one before."""
    for number in range(count):
        path = Path(directory) / f"{prefix}{number}"
        path.touch()
        os.utime(path, (1_000_000 + number, 1_000_000 + number))


@pytest.mark.parametrize("directory", ["refs", "failures"])
def test_one_users_flood_costs_that_user(layout: Layout, directory: str) -> None:
    path = getattr(layout, directory)
    fill(path, "", 30)
    fill(path, "u1001-", 15)
    fill(path, "u1000-", 100)
    bounds.keep(layout)
    left = sorted(os.listdir(path))
    assert len([name for name in left if name.startswith("u1000-")]) == 15
    assert "u1000-99" in left
    assert len(left) == 30 + 15 + 15


def test_what_is_shared_is_bounded_too(layout: Layout) -> None:
    fill(layout.refs, "", 41)
    fill(f"{layout.hot}/all", "u", 41)
    fill(f"{layout.hot}/1000", "u", 21)
    bounds.keep(layout)
    sizes = [len(os.listdir(path)) for path in (layout.refs, f"{layout.hot}/all")]
    assert sizes == [30, 30]
    assert len(os.listdir(f"{layout.hot}/1000")) == 15


def test_locks_that_nobody_holds(layout: Layout) -> None:
    for number in range(20):
        with held(layout.lock(str(number)), deadline=0.0, waiting=lambda _: None):
            pass
    with held(layout.lock("3"), deadline=time.monotonic() + 5, waiting=lambda _: None):
        bounds.keep(layout)
        assert os.listdir(layout.locks) == ["3.lock"]
