"""Which failures are retried, when, and for how long."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from hpcimg import errors
from hpcimg.errors import HpcimgError, TransientError, Unreachable
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.retry import attempts
from tests.parts.parents import Parent
from tests.unit.test_errors import all_classes

SETTINGS = Settings(tries=5, deadline=float("inf"), connect_timeout_s=1, stall_timeout_s=1)


class Work:
    """Something that fails as told; it counts its tries, and how long was slept between."""

    def __init__(self, parent: Parent, descriptor: int, slept: list[float]) -> None:
        self._sink = Sink(descriptor, parent)
        self.slept = slept
        self.said = parent.said
        self.tries = 0

    def run(self, failures: list[HpcimgError | None], settings: Settings = SETTINGS) -> None:
        """Fail with one error each time, or not with None; the last one counts for all later."""
        for attempt in attempts(self._sink, settings):
            with attempt:
                self.tries += 1
                failure = failures[min(self.tries, len(failures)) - 1]
                if failure:
                    raise failure


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Work whose waits take no time, since the sleeps are only written down."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    descriptor = os.memfd_create("image")
    yield Work(Parent(), descriptor, slept)
    os.close(descriptor)


def busy(retry_after_s: float | None = None) -> Unreachable:
    error = Unreachable("h is unavailable now", why="the server answered 503")
    error.retry_after_s = retry_after_s
    return error


def test_what_works_is_done_once(work: Work) -> None:
    work.run([None])
    assert (work.tries, work.slept, work.said) == (1, [], [])


def may_change(error: type[HpcimgError]) -> bool:
    return issubclass(error, TransientError) and error is not errors.Damaged


@pytest.mark.parametrize("error", [e for e in all_classes() if not may_change(e)])
def test_what_cannot_change_is_not_tried_again(work: Work, error: type[HpcimgError]) -> None:
    with pytest.raises(error, match="no"):
        work.run([error("no")])
    assert (work.tries, work.slept) == (1, [])


@pytest.mark.parametrize("error", [e for e in all_classes() if may_change(e)])
def test_what_may_change_is(work: Work, error: type[HpcimgError]) -> None:
    work.run([error("not now"), error("not now"), None])
    assert work.tries == 3
    assert len(work.slept) == 2


def test_the_last_failure_stands_when_the_tries_are_used_up(work: Work) -> None:
    with pytest.raises(Unreachable, match="503"):
        work.run([errors.Interrupted("first"), busy()])
    assert work.tries == 5


def test_waits_grow_and_are_random(work: Work) -> None:
    with pytest.raises(Unreachable):
        work.run([busy()], SETTINGS._replace(tries=12))
    assert all(0 <= wait <= min(2**n, 30) for n, wait in enumerate(work.slept))
    assert max(work.slept[5:]) > 1
    assert len(set(work.slept)) == 11


@pytest.mark.parametrize("asked", [0.0, 7.0, 60.0])
def test_waits_as_long_as_the_server_wishes_and_a_little_more(work: Work, asked: float) -> None:
    work.run([busy(asked), busy(asked), None])
    assert all(asked <= wait <= asked + 3 for wait in work.slept)
    assert len(set(work.slept)) == 2


def test_a_wish_holds_for_once(work: Work) -> None:
    work.run([busy(100.0), busy(), None])
    assert work.slept[0] >= 100
    assert work.slept[1] <= 2


def test_does_not_wait_beyond_the_deadline(work: Work) -> None:
    with pytest.raises(Unreachable, match="503"):
        work.run([busy(60.0)], SETTINGS._replace(deadline=time.monotonic() + 59))
    assert (work.tries, work.slept) == (1, [])


def test_says_why_it_waits(work: Work) -> None:
    work.run([busy(), None])
    [said] = work.said
    assert said == ("retrying", "h is unavailable now: the server answered 503", work.slept[0])
