"""Limit how many fetches of this node use one server at the same time.

A turn is one of the cache's locks, so that the kernel releases it if its holder dies. The limit
only protects servers from bursts: a fetch that has waited long goes on without a turn.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from hpcimg.cache.paths import Layout
from hpcimg.errors import DeadlinePassed
from hpcimg.locks import held

AT_ONCE = 8
_LOOK_EVERY_S = 0.2


@contextmanager
def turn(
    layout: Layout, host: str, *, patience_s: float, waiting: Callable[[], None]
) -> Iterator[bool]:
    """Hold one of a host's turns; yield whether one was free within `patience_s`.

    `waiting` is called repeatedly meanwhile, and may raise. Raises CacheUnusable.
    """
    name = hashlib.sha256(host.encode()).hexdigest()[:16]
    late = time.monotonic() + patience_s
    numbers = list(range(AT_ONCE))
    random.shuffle(numbers)
    with ExitStack() as stack:
        while True:
            for number in numbers:
                lock = layout.lock(f"turn-{name}-{number}")
                try:
                    stack.enter_context(held(lock, deadline=time.monotonic()))
                except DeadlinePassed:
                    continue
                yield True
                return
            if time.monotonic() > late:
                break
            waiting()
            time.sleep(_LOOK_EVERY_S)
        yield False
