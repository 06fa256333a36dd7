"""The node's events: recording failures, reading all events, rotating their file.

Events in the current and the previous file are counted individually; older ones survive as sums in
`counters.json`, including their bytes and seconds. Readers take no lock: they start over if a file
was rotated in the meantime.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from hpcimg import atomic, processes
from hpcimg.cache import events
from hpcimg.cache.paths import Layout
from hpcimg.cache.sums import Sums
from hpcimg.errors import DeadlinePassed, HpcimgError
from hpcimg.locks import held

_ROTATE_AT = 1 << 20
_LOOKS = 10  # attempts of a reader, each of which may be disturbed by a rotation


def record_failure(
    layout: Layout, error: HpcimgError, *, job: str, uri: str, took_s: float
) -> None:
    """Record that an image could not be staged, for a job or, with "", for none."""
    fields = {"uri": uri, "message": str(error), "class": error.kind}
    fields["error"] = type(error).__name__
    events.record(layout.events, "failed", job=job, took_s=round(took_s, 3), **fields)


def sums(layout: Layout) -> Sums:
    """Return the sums of all events since the node booted."""
    for _ in range(_LOOKS):
        seen = _files_seen(layout)
        counted, summed = _load_sums(layout)
        if _first_line(_before(layout)) != summed:
            counted.add_all(_read(_before(layout)))
        counted.add_all(_read(layout.events))
        if _files_seen(layout) == seen:
            break
    return counted


def recent(layout: Layout) -> Iterator[dict[str, Any]]:
    """Return the individual events that are still there, oldest first."""
    for path in (_before(layout), layout.events):
        yield from _read(path)


def rotate(layout: Layout) -> None:
    """Start a new file if the current one is long.

    A writer may still have the current file open; so the previous one is summed up and dropped. If
    another process is doing that, leave it to that process.
    """
    with contextlib.suppress(DeadlinePassed):
        lock = layout.lock("events")
        with held(lock, deadline=time.monotonic()):
            _rotate(layout)


def _rotate(layout: Layout) -> None:
    try:
        if os.stat(layout.events).st_size < _ROTATE_AT:
            return
    except FileNotFoundError:
        return
    counted, summed = _load_sums(layout)
    first = _first_line(_before(layout))
    if first != summed:  # else a rotation was interrupted after it had summed this file up
        counted.add_all(_read(_before(layout)))
        text = json.dumps({**counted.to_dict(), "summed": first}) + "\n"
        temp = processes.temp_path(layout.state_tmp, "counters")
        atomic.write_file(_counters(layout), text, temp=temp)
    os.rename(layout.events, _before(layout))


def _read(path: str) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for line in file:
            # A process that was killed may have left half a line at the end.
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event


def _load_sums(layout: Layout) -> tuple[Sums, str]:
    """Return the sums of older files, and the first line of the last file included."""
    try:
        with open(_counters(layout), encoding="utf-8") as file:
            fields = json.load(file)
        return Sums.from_dict(fields), str(fields["summed"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Sums(), ""


def _first_line(path: str) -> str:
    """Return the line that identifies a file of events, "" for none."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        return file.readline()
    return ""


def _files_seen(layout: Layout) -> tuple[tuple[int, int] | None, ...]:
    """Return a value that changes with each rotation."""
    found: list[tuple[int, int] | None] = []
    for path in (_counters(layout), _before(layout)):
        try:
            seen = os.stat(path)
            found.append((seen.st_ino, seen.st_mtime_ns))
        except FileNotFoundError:
            found.append(None)
    return tuple(found)


def _before(layout: Layout) -> str:
    return f"{layout.state}/events.1.jsonl"


def _counters(layout: Layout) -> str:
    return f"{layout.state}/counters.json"
