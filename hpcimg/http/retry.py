"""Retries: of transient errors, at random, increasing intervals, or as the server asks."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, TypeGuard

from hpcimg.errors import HpcimgError, TransientError
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

_LONGEST_S = 30.0


def attempts(sink: Sink, settings: Settings) -> Iterator[AbstractContextManager[object]]:
    """Yield attempts, each a context manager, until one succeeds; as in tenacity.

    Only a TransientError is retried, unless its `tried_again` is false. A `Retry-After` is obeyed;
    if it does not fit into the remaining time, the error is raised.
    """
    first = _First()
    yield first
    failure = first.failure
    if failure is None:
        return
    for attempt in _retrying(sink, settings):
        if failure is None:
            yield attempt
            continue
        with attempt:
            error, failure = failure, None
            raise error


class _First:
    """The first attempt, and mostly the only one, for which tenacity need not be loaded."""

    failure: TransientError | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not _may_change(error):
            return False
        self.failure = error
        return True


def _retrying(sink: Sink, settings: Settings) -> Retrying:
    from tenacity import (
        Retrying,
        retry_if_exception,
        stop_after_attempt,
        stop_before_delay,
        wait_random_exponential,
    )

    backoff = wait_random_exponential(multiplier=1, max=_LONGEST_S)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_s if isinstance(error, HpcimgError) else None
        # Jitter on top, so that a thousand nodes told "60" do not all return at 60.
        return backoff(state) if asked is None else asked + backoff(state) / 10

    def tell(state: RetryCallState) -> None:
        assert state.outcome
        assert state.next_action
        error = state.outcome.exception()
        assert isinstance(error, TransientError)
        sink.retry(error.brief, state.next_action.sleep)

    left = max(0.0, settings.deadline - time.monotonic())
    return Retrying(
        retry=retry_if_exception(_may_change),
        stop=stop_after_attempt(settings.tries) | stop_before_delay(left),
        wait=wait,
        before_sleep=tell,
        reraise=True,
    )


def wait_first(sink: Sink, wait_s: float, why: str) -> None:
    """Wait as long as a server asked for earlier, and a little more."""
    wait_s += random.uniform(0, 1 + wait_s / 100)
    sink.retry(why, wait_s)
    time.sleep(wait_s)


def _may_change(error: BaseException | None) -> TypeGuard[TransientError]:
    return isinstance(error, TransientError) and error.tried_again
