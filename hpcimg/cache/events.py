"""Events on this node, one line each, for status and metrics.

`events.jsonl` in the state directory; each line is a single write with O_APPEND, so writers never
mix. Imports only posix and time: a cache hit writes one.
"""

import posix
import time

from hpcimg.plainjson import dumps


def record(path: str, event: str, **fields: object) -> None:
    """Append one event. If it cannot be written, the node continues without it."""
    line = dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n"
    try:
        descriptor = posix.open(
            path, posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_NOFOLLOW, 0o644
        )
    except OSError:
        return
    try:
        posix.write(descriptor, line.encode("utf-8", "replace"))
    except OSError:
        pass
    finally:
        posix.close(descriptor)
