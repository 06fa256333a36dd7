"""Turns at one server: a limited number at once, and no long waits."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcimg.cache import directories
from hpcimg.cache.paths import Layout
from hpcimg.cache.turns import AT_ONCE, turn


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(made)
    return made


def nobody() -> None:
    raise AssertionError("nobody has to wait")


def test_so_many_have_one_at_once(layout: Layout) -> None:
    with ExitStack() as stack, ExitStack() as first:
        assert first.enter_context(turn(layout, "a", patience_s=60, waiting=nobody))
        for _ in range(AT_ONCE - 1):
            assert stack.enter_context(turn(layout, "a", patience_s=60, waiting=nobody))
        # Another server's are its own.
        assert stack.enter_context(turn(layout, "b", patience_s=60, waiting=nobody))
        # The next one gets that of the first who is done.
        late = turn(layout, "a", patience_s=60, waiting=first.close)
        assert stack.enter_context(late)


def test_who_has_waited_for_long_goes_without(layout: Layout) -> None:
    asked = []
    with ExitStack() as stack:
        for _ in range(AT_ONCE):
            stack.enter_context(turn(layout, "a", patience_s=60, waiting=nobody))
        began = time.monotonic()
        late = turn(layout, "a", patience_s=0.3, waiting=lambda: asked.append(1))
        assert not stack.enter_context(late)
        assert time.monotonic() - began < 30
    assert asked


def test_what_ends_the_wait_gives_nothing_away(layout: Layout) -> None:
    def ends() -> None:
        raise KeyError

    with ExitStack() as stack:
        for _ in range(AT_ONCE):
            stack.enter_context(turn(layout, "a", patience_s=60, waiting=nobody))
        with pytest.raises(KeyError), turn(layout, "a", patience_s=60, waiting=ends):
            pass
    with turn(layout, "a", patience_s=0, waiting=nobody) as got:
        assert got
