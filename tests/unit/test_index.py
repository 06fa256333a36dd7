"""The index of the cache: always consistent with the disk."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from hpcimg.cache import directories, evict, index, store
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(index, "_WORTH_WRITING", 1)
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    return layout


def publish(layout: Layout, key: str, size: int, owner: int | None = None) -> Entry:
    extension = "blob" if key.startswith("blob") else "sif"
    entry = Entry(key, extension, key, size, "", (f"file:///{key}",), time.time(), owner)
    with store.unfinished(layout, "x") as (temp, descriptor):
        os.write(descriptor, bytes(size))
        store.publish(layout, entry, temp, descriptor, durable=False)
    return entry


def settle(layout: Layout) -> None:
    """Let a minute pass for the index."""
    index._SETTLED_S = -60.0


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_SETTLED_S", index._SETTLED_S)


def check(layout: Layout) -> None:
    """Compare with the disk."""
    wanted = sorted(store.entries(layout), key=lambda entry: entry.key)
    assert sorted((e for e, _ in index.entries(layout)), key=lambda e: e.key) == wanted
    assert {e.key: used for e, used in index.entries(layout)} == {
        e.key: store.last_used(layout, e.key) for e in wanted
    }
    held = index.held(layout)
    assert held.size_bytes >= sum(entry.size_bytes for entry in wanted)
    assert held.files >= len(wanted)


def test_it_follows_what_happens(layout: Layout) -> None:
    settle(layout)
    check(layout)
    numbers = random.Random(1)
    here: dict[str, Entry] = {}
    for step in range(60):
        key = f"{numbers.choice(['', 'blob-'])}sha256-{numbers.randrange(10):x}"
        owner = numbers.choice([None, None, 1])
        if owner is not None:
            key = f"u1-{key}"
        if key in here and numbers.random() < 0.5:
            store.forget(layout, here.pop(key))
        elif key in here:
            store.mark_used(layout, key)
        else:
            here[key] = publish(layout, key, numbers.randrange(1, 50), owner)
        if step % 7 == 0:
            layout = Layout(layout.cache, layout.state)
        check(layout)
        assert index.held(layout) == (sum(entry.size_bytes for entry in here.values()), len(here))


def test_what_is_known_is_not_read_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        publish(layout, f"sha256-{number}", 7)
    settle(layout)
    check(layout)
    check(layout)
    monkeypatch.setattr(store, "load_record", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(index, "_held_in", lambda *_: pytest.fail("looked at"))
    assert len(list(index.entries(layout))) == 5
    assert index.held(layout) == (35, 5)


def test_what_has_just_changed_is_not_taken_at_its_word(layout: Layout) -> None:
    publish(layout, "sha256-1", 7)
    assert index.held(layout) == (7, 1)
    assert index._load(layout.sizes) == {
        directory: fields
        for directory, fields in index._load(layout.sizes).items()
        if directory != layout.images
    }
    list(index.entries(layout))
    assert index._load(layout.records) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "of": 3}', '{"version": 9}'])
def test_a_file_that_is_no_index(layout: Layout, text: str) -> None:
    publish(layout, "sha256-1", 7)
    settle(layout)
    for path in (layout.sizes, layout.records):
        Path(path).write_text(text)
    check(layout)


@pytest.mark.parametrize("odd", [3, [], [1, 2], ["x", "y", "z", "w", "v"], [1, 2, [3]], None])
def test_an_odd_row_of_an_index(layout: Layout, odd: object) -> None:
    entry = publish(layout, "sha256-1", 7)
    settle(layout)
    seen = os.stat(layout.meta(entry.key))
    mark = [seen.st_ino, seen.st_ctime_ns]
    rows = [odd, [*mark, odd], [*mark, *[odd] * 10], [*mark, entry.key, *[odd] * 9]]
    for row in rows:
        for path, name in ((layout.sizes, layout.images), (layout.records, entry.key)):
            Path(path).write_text(json.dumps({"version": 1, "of": {name: row}}))
        check(layout)


def test_an_image_that_was_removed_or_cut_by_hand(layout: Layout) -> None:
    for number in range(3):
        publish(layout, f"sha256-{number}", 7)
    settle(layout)
    check(layout)
    os.unlink(layout.image("sha256-0", "sif", None))
    os.truncate(layout.image("sha256-1", "sif", None), 3)
    assert {entry.key for entry, _ in index.entries(layout)} == {"sha256-1", "sha256-2"}
    # Its length is looked at where it counts.
    assert [candidate.key for candidate in evict.candidates(layout, time.time())] == ["sha256-2"]
    os.unlink(layout.image("sha256-1", "sif", None))
    check(layout)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_an_image_that_is_not_roots_is_left_aside_whatever_the_index_says(layout: Layout) -> None:
    entry = publish(layout, "sha256-1", 7)
    settle(layout)
    check(layout)
    os.chown(store.path_of(layout, entry), 12345, 12345)
    assert [known.key for known, _ in index.entries(layout)] == ["sha256-1"]
    assert store.load_entry(layout, "sha256-1") is None
    assert evict.candidates(layout, time.time()) == []


def test_nobody_else_reads_it(layout: Layout) -> None:
    publish(layout, "u1-sha256-1", 7, owner=1)
    settle(layout)
    check(layout)
    for path in (layout.sizes, layout.records):
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_where_the_state_cannot_be_written(layout: Layout) -> None:
    publish(layout, "sha256-1", 7)
    os.rmdir(layout.state_tmp)
    settle(layout)
    check(layout)
