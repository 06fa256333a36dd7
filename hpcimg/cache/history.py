"""The events of this node: failures are written here, all are read, their file is kept short.

The events of the current file and of the one before are counted as they are;
what was in older files lives on as sums in `counters.json`, with their bytes and
seconds. A reader takes no lock: it looks again where a file was begun meanwhile.
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
_LOOKS = 10  # of a reader, each of which may come across a file that is begun


def record_failure(
    layout: Layout, error: HpcimgError, *, job: str, uri: str, took_s: float
) -> None:
    """Record that an image could not be had, by the job or, with "", by nobody's."""
    fields = {"uri": uri, "message": str(error), "class": error.kind}
    fields["error"] = type(error).__name__
    events.record(layout.events, "failed", job=job, took_s=round(took_s, 3), **fields)


def sums(layout: Layout) -> Sums:
    """Return all that happened since the node's state was made, summed up."""
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
    counted, summed = _load_sums(layout)
    first = _first_line(_before(layout))
    if first != summed:  # else a rotation was cut off after it had summed this file up
        counted.add_all(_read(_before(layout)))
        text = json.dumps({**counted.to_dict(), "summed": first}) + "\n"
        temp = processes.temp_path(layout.state_tmp, "counters")
        atomic.write_file(_counters(layout), text, temp=temp)
    os.rename(layout.events, _before(layout))


def _read(path: str) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for line in file:
            # The last line of a process that was killed may be half a line.
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event


def _load_sums(layout: Layout) -> tuple[Sums, str]:
    """Return the sums of older files, and the first line of the last one that is in them."""
    try:
        with open(_counters(layout), encoding="utf-8") as file:
            fields = json.load(file)
        return Sums.from_dict(fields), str(fields["summed"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Sums(), ""


def _first_line(path: str) -> str:
    """Return what tells one file of events from all others, "" for none."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        return file.readline()
    return ""


def _files_seen(layout: Layout) -> tuple[tuple[int, int] | None, ...]:
    """Return what changes when a rotation does something."""
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
