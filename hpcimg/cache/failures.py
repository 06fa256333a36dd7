"""Cached failures, which spare others from asking the server again.

Processes that waited for a fetch share its failure, whatever it was: otherwise sixty jobs that wait
for one image from a server that is down would each find that out in turn. Permanent failures are
cached for a while longer: a job array with a typo asks once.
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
    """Which cached failures apply to a requester.

    `ttl_s` is how long an error of class "user" is cached, 0 for not at all. `settings` is the
    fingerprint of the configuration: failures under another one do not count. `asker` separates
    requesters that may get different answers for one reference; it becomes part of a file name.
    """

    ttl_s: float = 0.0
    settings: str = ""
    asker: str = ""

    def path(self, layout: Layout, ref_id: str) -> str:
        """Return the path of this requester's last failure for a reference."""
        return layout.failure(f"{ref_id}-{self.asker}" if self.asker else ref_id)


def record(layout: Layout, ref_id: str, memory: Memory, error: HpcimgError) -> None:
    """Record that fetching a reference failed now. Hold the reference's lock."""
    fields = {
        "time": time.monotonic(), "boot": processes.boot_id(), "settings": memory.settings,
        **error.to_dict(),
    }  # fmt: skip
    temp = processes.temp_path(layout.state_tmp, ref_id)
    with contextlib.suppress(OSError):  # then the next process finds out for itself
        atomic.write_file(memory.path(layout, ref_id), json.dumps(fields), temp=temp, mode=0o600)


def forget(layout: Layout, ref_id: str, memory: Memory) -> None:
    """Remove the record: the reference was fetched."""
    with contextlib.suppress(OSError):
        atomic.remove(memory.path(layout, ref_id))


def recall(layout: Layout, ref_id: str, memory: Memory, *, began: float) -> HpcimgError | None:
    """Return the failure that applies to a request that began at `began`, if there is one.

    `began` is a time.monotonic() value. Any failure after it applies.
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
    """Remove records of failures older than this: each misspelling creates one."""
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
