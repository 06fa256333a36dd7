"""Images of which one file was removed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcimg.cache import directories, store
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry, Ref


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A cache with two images, one of them private, and the refs to them."""
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    for key, owner in (("sha256-a", None), ("u1-sha256-b", 1)):
        entry = Entry(key, "sif", key, 4, "", ("file:///x",), 0.0, owner)
        with store.unfinished(layout, "x") as (temp, descriptor):
            Path(temp).write_bytes(b"data")
            store.publish(layout, entry, temp, descriptor)
        store.save_ref(layout, f"ref-{key}", Ref("file:///x", key, "", 0.0))
    return layout


def files(layout: Layout) -> int:
    directories = ("images", "users/1", "meta", "refs")
    return sum(1 for directory in directories for _ in Path(layout.cache, directory).iterdir())


def test_a_whole_cache_has_none(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_ORPHAN_AGE_S", -1.0)
    assert store.sweep_orphans(layout) == 0
    assert files(layout) == 6


@pytest.mark.parametrize("gone", ["images/sha256-a.sif", "meta/sha256-a.json"])
def test_the_other_files_go(layout: Layout, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    Path(layout.cache, gone).unlink()
    assert store.sweep_orphans(layout) == 0  # it could be on its way
    monkeypatch.setattr(store, "_ORPHAN_AGE_S", -1.0)
    assert store.sweep_orphans(layout) == 2
    assert files(layout) == 3


def test_a_private_image_without_its_meta_file(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(layout.cache, "meta/u1-sha256-b.json").unlink()
    monkeypatch.setattr(store, "_ORPHAN_AGE_S", -1.0)
    assert store.sweep_orphans(layout) == 2
    assert not list(Path(layout.cache, "users/1").iterdir())
