"""Failures that others hear of without asking the server again.

Those who waited for a fetch share its failure, whatever it was: sixty jobs that
wait for one image of a server that is down would each find that out for
themselves, one after the other. A failure that asking again does not change is
remembered for a while beyond that: a job array with a typing error asks once.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import NamedTuple

from hpcimg import atomic, processes
from hpcimg.cache.paths import Layout
from hpcimg.errors import HpcimgError, from_dict
from hpcimg.units import format_duration


class Memory(NamedTuple):
    """What one asker's failures are remembered by.

    `ttl_s` is for how long an error of the class "user" counts, 0 for not at
    all. `settings` is the state of the configuration: what was found under
    another does not count. `asker` tells those apart whom one reference is
    answered differently; it becomes part of a file name.
    """

    ttl_s: float = 0.0
    settings: str = ""
    asker: str = ""

    def path(self, layout: Layout, ref_id: str) -> str:
        """Return where this asker's last failure with a reference is."""
        return layout.failure(f"{ref_id}-{self.asker}" if self.asker else ref_id)


def record(layout: Layout, ref_id: str, memory: Memory, error: HpcimgError) -> None:
    """Write down that fetching a reference failed now. Hold the reference's lock."""
    fields = {
        "time": time.monotonic(), "boot": processes.boot_id(), "settings": memory.settings,
        **error.to_dict(),
    }  # fmt: skip
    temp = processes.temp_path(layout.state_tmp, ref_id)
    with contextlib.suppress(OSError):  # then the next one finds out for itself
        atomic.write_file(memory.path(layout, ref_id), json.dumps(fields), temp=temp, mode=0o600)


def forget(layout: Layout, ref_id: str, memory: Memory) -> None:
    """Remove what was written down: the reference could be had."""
    with contextlib.suppress(OSError):
        atomic.remove(memory.path(layout, ref_id))


def recall(layout: Layout, ref_id: str, memory: Memory, *, began: float) -> HpcimgError | None:
    """Return the failure that still counts for one that came at `began`, if there is one.

    `began` is a time.monotonic() value. What failed after it counts whatever it is.
    """
    try:
        with open(memory.path(layout, ref_id), encoding="utf-8") as file:
            fields = json.load(file)
        error = from_dict(fields)
        happened = float(fields["time"])
        if fields["boot"] != processes.boot_id() or fields["settings"] != memory.settings:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if happened > began:
        return error
    age = time.monotonic() - happened
    if error.kind != "user" or age >= memory.ttl_s:
        return None
    error.do += (
        f" (Cached result, {format_duration(age)} old; next try in"
        f" {format_duration(memory.ttl_s - age)}.)"
    )
    return error


def sweep(layout: Layout, *, age_s: float) -> None:
    """Remove the files of failures that are older than this: each misspelling makes one."""
    now = time.time()
    try:
        names = os.listdir(layout.failures)
    except OSError:
        return
    for name in names:
        path = f"{layout.failures}/{name}"
        with contextlib.suppress(OSError):
            if now - os.stat(path).st_mtime > age_s:
                os.unlink(path)
