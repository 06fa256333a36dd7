"""Work under way, for those who look: `inflight/<id>.json` in the state directory."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

from hpcimg import atomic, processes
from hpcimg.cache.paths import Layout
from hpcimg.errors import explained
from hpcimg.fetch.contract import Request

_RENEW_EVERY_S = 1.0


class Inflight:
    """One image on its way. As a context manager it removes its file at the end.

    `later` is the number of bytes that it will need on the disk after the
    phase that it is in.
    """

    def __init__(self, layout: Layout, name: str, request: Request) -> None:
        self._layout = layout
        self._path = f"{layout.inflight}/{name}.json"
        self._mode = 0o644 if request.owner is None else 0o600
        self._next = 0.0
        self.later = 0
        self._fields: dict[str, object] = {
            "version": 1, "uri": request.reference.uri, "job": request.job,
            "process": processes.tag(), "since": time.time(),
            "phase": "", "bytes": 0, "total": None,
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
        coming: int | None = None,
    ) -> bool:
        """Say how far it is; put down when the phase changes, else at most once a second.

        `done` of `total` is what people look at. `written` is how many bytes it
        has on the disk, `coming` how many this phase will still write; for a
        fetch these are `done` and the rest. Returns whether it was put down. A
        full tmpfs costs the view, not the image.
        """
        now = time.monotonic()
        if phase == self._fields["phase"] and now < self._next:
            return False
        self._next = now + _RENEW_EVERY_S
        if coming is None:
            coming = max(0, (total or 0) - done)
        self._fields.update(
            phase=phase, bytes=done, total=total, renewed=time.time(),
            written=done if written is None else written, coming=coming + self.later,
        )  # fmt: skip
        temp = processes.temp_path(self._layout.state_tmp, os.path.basename(self._path))
        with contextlib.suppress(OSError):
            text = json.dumps(self._fields) + "\n"
            atomic.write_file(self._path, text, temp=temp, mode=self._mode)
        return True


def under_way(layout: Layout) -> list[dict[str, Any]]:
    """Return what `Inflight` says of work whose process still runs, oldest first."""
    found = []
    for name, fields in _read_all(layout):
        if processes.alive(str(fields.get("process", ""))):
            found.append({"id": name.removesuffix(".json"), **fields})
    return sorted(found, key=lambda fields: float(fields["since"]))


@explained()
def sweep(layout: Layout) -> int:
    """Remove the files of processes that are gone; return how many."""
    return sum(
        atomic.remove(f"{layout.inflight}/{name}")
        for name, fields in _read_all(layout)
        if not processes.alive(str(fields.get("process", "")))
    )


def stale(layout: Layout) -> int:
    """Return how many files are of processes that are gone."""
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
