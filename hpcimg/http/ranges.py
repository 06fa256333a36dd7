"""The rest of a large file over several connections at once, where one alone is slow.

Many object stores and proxies bound what one connection gets, not what a client gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from hpcimg.fetch.sink import Sink

CONNECTIONS = 4
PART_BYTES = 8 << 20
_AT_LEAST_BYTES = 64 << 20
_LOOK_AFTER_S = 2.0
_FAST_BYTES_PER_S = 100e6  # a gigabit: what most links of nodes can carry


def worth_while(*, came_bytes: int, took_s: float, left_bytes: int) -> bool:
    """Tell whether a file that came so slowly is better read over several connections."""
    return (
        left_bytes >= _AT_LEAST_BYTES
        and took_s >= _LOOK_AFTER_S
        and came_bytes < took_s * _FAST_BYTES_PER_S
    )


def fetch_rest(sink: Sink, end: int, read: Callable[[int, int], bytes]) -> None:
    """Fill the sink up to `end` with parts that come side by side.

    `read` returns the bytes from one position to before another, and is called
    by several threads at once. Some parts more than there are connections are
    held in memory. Raises what `read` raises; what is in the sink is good then.
    """
    pool = ThreadPoolExecutor(CONNECTIONS)
    coming: deque[Future[bytes]] = deque()
    position = sink.position
    try:
        while position < end or coming:
            while position < end and len(coming) <= CONNECTIONS:
                after = min(position + PART_BYTES, end)
                coming.append(pool.submit(read, position, after))
                position = after
            sink.write(coming.popleft().result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
