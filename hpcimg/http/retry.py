"""Retries: of transient errors, at random, increasing intervals, or as the server asks."""

from __future__ import annotations

import random
import time

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from hpcimg.errors import HpcimgError, TransientError
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink

_backoff = wait_random_exponential(multiplier=1, max=30)


def attempts(sink: Sink, settings: Settings) -> Retrying:
    """Return an iterator of attempts, each a context manager, as in tenacity.

    Only a TransientError is retried, unless its `tried_again` is false. A `Retry-After` is obeyed;
    if it does not fit into the remaining time, the error is raised.
    """

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
        wait=_wait,
        before_sleep=tell,
        reraise=True,
    )


def wait_first(sink: Sink, wait_s: float, why: str) -> None:
    """Wait as long as a server asked for earlier, and a little more."""
    wait_s += random.uniform(0, 1 + wait_s / 100)
    sink.retry(why, wait_s)
    time.sleep(wait_s)


def _may_change(error: BaseException) -> bool:
    return isinstance(error, TransientError) and error.tried_again


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, HpcimgError) else None
    # Jitter on top, so that a thousand nodes told "60" do not all return at 60.
    return _backoff(state) if asked is None else asked + _backoff(state) / 10
