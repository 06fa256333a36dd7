"""Cached failures: what is recorded, for whom, and for how long."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcimg.cache import directories, failures, store
from hpcimg.cache.failures import Memory
from hpcimg.cache.paths import Layout
from hpcimg.errors import CacheUnusable, Forbidden, HpcimgError, Unreachable

LATER = 1e12
MINUTE = Memory(60, "settings")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    return layout


def test_nothing_is_remembered_at_first(layout: Layout) -> None:
    assert failures.recall(layout, "ref", MINUTE, began=0.0) is None
    failures.forget(layout, "ref", MINUTE)


@pytest.mark.parametrize(
    ("error", "lasts"),
    [(Forbidden("no"), True), (Unreachable("down"), False), (CacheUnusable("disk"), False)],
)
def test_who_waited_hears_of_all_and_who_comes_later_of_what_stays(
    layout: Layout, error: HpcimgError, lasts: bool
) -> None:
    began = time.monotonic()
    failures.record(layout, "ref", MINUTE, error)
    for memory in (MINUTE, MINUTE._replace(ttl_s=0)):
        waited = failures.recall(layout, "ref", memory, began=began)
        assert type(waited) is type(error)
        assert str(waited) == str(error)
    came_later = failures.recall(layout, "ref", MINUTE, began=LATER)
    assert (came_later is not None) == lasts
    assert failures.recall(layout, "ref", MINUTE._replace(ttl_s=0), began=LATER) is None


def test_each_asker_has_its_own(layout: Layout) -> None:
    """What the site's account may not read, a user may; and one user is not another."""
    refs = [store.ref_id("docker://h/x", owner) for owner in (None, 1, 2)]
    for ref in refs:
        for memory in (MINUTE, MINUTE._replace(asker="user")):
            assert failures.recall(layout, ref, memory, began=LATER) is None
            failures.record(layout, ref, memory, Forbidden("no"))
            assert failures.recall(layout, ref, memory, began=LATER)


def test_other_settings_are_another_question(layout: Layout) -> None:
    failures.record(layout, "ref", MINUTE, Forbidden("no"))
    assert failures.recall(layout, "ref", Memory(60, "others"), began=LATER) is None


def test_success_is_the_end_of_it(layout: Layout) -> None:
    failures.record(layout, "ref", MINUTE, Forbidden("no"))
    failures.forget(layout, "ref", MINUTE)
    assert failures.recall(layout, "ref", MINUTE, began=LATER) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"time": "x"}', "null"])
def test_what_cannot_be_understood_is_nothing(layout: Layout, text: str) -> None:
    Path(layout.failure("ref")).write_text(text)
    assert failures.recall(layout, "ref", MINUTE, began=0.0) is None
