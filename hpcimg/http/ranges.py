"""Reading the rest of a large file over several connections at once, if a single one is slow.

Many object stores and proxies limit the rate per connection, not per client.
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
_FAST_BYTES_PER_S = 100e6  # a gigabit: the link speed of most nodes


def worth_while(*, came_bytes: int, took_s: float, left_bytes: int) -> bool:
    """Tell whether a file that arrives this slowly should be read over several connections."""
    return (
        left_bytes >= _AT_LEAST_BYTES
        and took_s >= _LOOK_AFTER_S
        and came_bytes < took_s * _FAST_BYTES_PER_S
    )


def fetch_rest(sink: Sink, end: int, read: Callable[[int, int], bytes]) -> None:
    """Fill the sink up to `end` with parts that are fetched in parallel.

    `read` returns the bytes of a half-open range, and is called from several threads at once. A few
    more parts than there are connections are held in memory. Raises what `read` raises; the sink
    then contains only good bytes.
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
