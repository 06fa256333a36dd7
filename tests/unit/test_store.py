"""The cache's records of references, and work directories."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hpcimg.cache import directories, store
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Ref
from hpcimg.errors import CacheUnusable

NOW = 1_700_000_000.0
HOUR = 3600.0


@pytest.mark.parametrize(
    ("resolved", "grace", "fresh"),
    [
        (-10, 0, True),
        (-HOUR, 0, False),
        (10, 0, False),  # the clock was set back since
        (-HOUR, 30, True),
        (-HOUR, -1, False),
    ],
)
def test_how_long_a_reference_is_taken_at_its_word(
    resolved: float, grace: float, fresh: bool
) -> None:
    ref = Ref("uri", "key", "v1", NOW + resolved, grace=NOW + grace)
    assert ref.fresh(HOUR, NOW) == fresh


def test_a_digest_is_taken_at_its_word_for_ever() -> None:
    assert Ref("uri", "key", "v1", NOW, pinned=True, grace=NOW + 24 * HOUR).fresh(HOUR, NOW - HOUR)


def test_a_grace_that_a_wrong_clock_gave(tmp_path: Path) -> None:
    """The server is asked again, and the way past it has no longer memory."""
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    now = time.time()
    for grace, kept in ((now + 30, True), (now + 24 * HOUR, False)):
        store.save_ref(layout, "x", Ref("uri", "key", "v1", now - 10, grace=grace))
        ref = store.load_ref(layout, "x")
        assert ref
        assert ref.fresh_until(0) == (grace if kept else now - 10)


def test_a_work_directory_that_cannot_be_given_away_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)

    def refuse(path: str, *_: int) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(CacheUnusable, match="not permitted"), store.work_directory(layout, 1000):
        pass
    assert os.listdir(layout.work) == []
