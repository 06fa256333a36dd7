"""The events of this node: failures are written here, all are read, their file is kept short.

The events of the current file and of the one before are counted as they are;
what was in older files lives on as sums in `counters.json`.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from hpcimg import atomic, processes
from hpcimg.cache import events
from hpcimg.cache.paths import Layout
from hpcimg.errors import DeadlinePassed, HpcimgError
from hpcimg.locks import held

_ROTATE_AT = 1 << 20


def record_failure(
    layout: Layout, error: HpcimgError, *, job: str, uri: str, took_s: float
) -> None:
    """Record that an image could not be had, by the job or, with "", by nobody's."""
    fields = {"uri": uri, "message": str(error), "class": error.kind}
    events.record(layout.events, "failed", job=job, took_s=round(took_s, 3), **fields)


def totals(layout: Layout) -> dict[str, int]:
    """Return how often each event happened since the node's state was made."""
    sums = collections.Counter(_load_sums(layout))
    sums.update(event["event"] for event in recent(layout))
    return dict(sums)


def recent(layout: Layout) -> Iterator[dict[str, Any]]:
    """Return the events that are still there one by one, oldest first."""
    for path in (_before(layout), layout.events):
        yield from _read(path)


def rotate(layout: Layout) -> None:
    """Begin a new file when the current one is long.

    A writer may still have the file open that was current; so what is summed up
    and dropped is the one before. Where another process is at it, it is left to that.
    """
    with contextlib.suppress(DeadlinePassed):
        lock = layout.lock("events")
        with held(lock, deadline=time.monotonic(), waiting=lambda _: None):
            _rotate(layout)


def _rotate(layout: Layout) -> None:
    try:
        if os.stat(layout.events).st_size < _ROTATE_AT:
            return
    except FileNotFoundError:
        return
    sums = collections.Counter(_load_sums(layout))
    sums.update(event["event"] for event in _read(_before(layout)))
    temp = processes.temp_path(layout.state_tmp, "counters")
    atomic.write_file(_counters(layout), json.dumps(dict(sums)) + "\n", temp=temp)
    os.rename(layout.events, _before(layout))


def _read(path: str) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for line in file:
            # The last line of a process that was killed may be half a line.
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event


def _load_sums(layout: Layout) -> dict[str, int]:
    try:
        with open(_counters(layout), encoding="utf-8") as file:
            sums = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return {str(name): int(count) for name, count in sums.items()}


def _before(layout: Layout) -> str:
    return f"{layout.state}/events.1.jsonl"


def _counters(layout: Layout) -> str:
    return f"{layout.state}/counters.json"
