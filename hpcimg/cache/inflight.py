"""Fetches under way, for observers: `inflight/<id>.json` in the state directory."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from typing import Any

from hpcimg import atomic, processes
from hpcimg.cache.paths import Layout
from hpcimg.errors import explained
from hpcimg.fetch.contract import Request

_RENEW_EVERY_S = 1.0
_OUR_PHASES = ("converting", "checking")  # reached only after a server has sent everything


class Inflight:
    """One fetch under way. As a context manager it removes its file at the end.

    `holds` are the names of the locks that its process currently holds; below `min_rate` bytes per
    second it counts as stalled.
    """

    def __init__(
        self,
        layout: Layout,
        name: str,
        request: Request,
        *,
        holds: Sequence[str] = (),
        min_rate: int = 0,
    ) -> None:
        self._layout = layout
        self._holds = holds
        self._min_rate = min_rate
        self._request = request
        self._heard = 0.0
        self._began: dict[str, float] = {}  # phases
        self._mark = (0.0, 0)  # when it last made progress, and at which position
        self._path = f"{layout.inflight}/{name}.json"
        self._mode = 0o644 if request.owner is None else 0o600
        self._next = 0.0
        self._fields: dict[str, Any] = {
            "version": 1, "uri": request.reference.uri, "job": request.job,
            "process": processes.tag(), "since": time.time(),
            "phase": "", "bytes": 0, "total": None, "written": 0, "coming": 0,
            "moved": time.monotonic(), "ends": None,
        }  # fmt: skip

    def __enter__(self) -> Inflight:
        self.update("asking")
        return self

    def __exit__(self, *_: object) -> None:
        atomic.remove(self._path)

    def update(
        self,
        phase: str,
        done: int = 0,
        total: int | None = None,
        *,
        written: int | None = None,
        coming: int = 0,
    ) -> bool:
        """Report progress; written when the phase changes, else at most once a second.

        `done` of `total` is for people. `written` is the number of bytes on the disk, by default
        `done`; `coming` is the number of bytes for which room was made and that are still to be
        written. Returns whether it was written. A full tmpfs only costs visibility, not the image.
        """
        now = time.monotonic()
        self._look(phase, done, total, now)
        if phase == self._fields["phase"] and now < self._next:
            return False
        self._next = now + _RENEW_EVERY_S
        self._fields.update(
            phase=phase, bytes=done, total=total,
            written=done if written is None else written, coming=coming,
        )  # fmt: skip
        self._put()
        return True

    def reserve(self, written: int, coming: int) -> None:
        """Record how many bytes are on the disk, and for how many more room was made."""
        self._fields.update(written=written, coming=coming)
        self._put()

    def waits(self) -> None:
        """Record that it is not stalled although nothing moves: it waits, for a limited time."""
        self._fields["moved"] = time.monotonic()
        self._put()

    def _look(self, phase: str, done: int, total: int | None, now: float) -> None:
        """Determine whether it makes progress, and when it will be done.

        Nothing that a server can do at will counts, such as breaking off and starting over.
        """
        new = phase not in self._began
        if new:
            self._mark = now, done
        elif done < self._mark[1]:
            self._mark = self._mark[0], done
        since, before = self._mark
        began = self._began.setdefault(phase, now)
        enough = self._min_rate * max(now - since, _RENEW_EVERY_S)
        if (new and phase in _OUR_PHASES) or (done > before and done - before >= enough):
            self._fields["moved"] = now
            self._mark = now, done
        if total and done:
            self._fields["ends"] = now + (total - done) * (now - began) / done
        elif new:
            self._fields["ends"] = None

    def _put(self) -> None:
        self._fields.update(holds=list(self._holds), renewed=time.time())
        temp = processes.temp_path(self._layout.state_tmp, os.path.basename(self._path))
        with contextlib.suppress(OSError):
            text = json.dumps(self._fields) + "\n"
            atomic.write_file(self._path, text, temp=temp, mode=self._mode)
        self._tell()

    def _tell(self) -> None:
        """Report progress to the waiting jobs, unless the fetch will end after the deadline."""
        moved, ends = self._fields["moved"], self._fields["ends"]
        if moved > self._heard and (ends is None or ends < self._request.deadline):
            self._heard = moved
            self._request.goes_on()


def moves(work: dict[str, Any], *, patience_s: float, deadline: float, now: float) -> bool:
    """Tell whether a fetch is worth waiting for until `deadline`.

    Times are time.monotonic() values. It must have made progress within `patience_s`, and once it
    has run for that long, must be able to finish in time at its current rate.
    """
    # The record may be this old.
    if now - float(work["moved"]) >= patience_s + _RENEW_EVERY_S:
        return False
    ends = work["ends"]
    return ends is None or float(ends) < deadline or time.time() - work["since"] < patience_s


def under_way(layout: Layout) -> list[dict[str, Any]]:
    """Return the records of fetches whose process is running, oldest first."""
    found = []
    for name, fields in _read_all(layout):
        if processes.alive(str(fields.get("process", ""))):
            found.append({"id": name.removesuffix(".json"), **fields})
    return sorted(found, key=lambda fields: float(fields["since"]))


@explained()
def sweep(layout: Layout) -> int:
    """Remove the files of dead processes; return how many."""
    return sum(
        atomic.remove(f"{layout.inflight}/{name}")
        for name, fields in _read_all(layout)
        if not processes.alive(str(fields.get("process", "")))
    )


def stale(layout: Layout) -> int:
    """Return the number of files of dead processes."""
    return sum(
        not processes.alive(str(fields.get("process", ""))) for _, fields in _read_all(layout)
    )


def _read_all(layout: Layout) -> list[tuple[str, dict[str, Any]]]:
    found = []
    try:
        names = os.listdir(layout.inflight)
    except FileNotFoundError:
        return []
    for name in names:
        try:
            with open(f"{layout.inflight}/{name}", encoding="utf-8") as file:
                found.append((name, json.load(file)))
        except (OSError, ValueError):  # gone, or private and we are not root
            continue
    return found
