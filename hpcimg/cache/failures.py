"""Failures that those who waited for them share.

Without this, sixty jobs that wait for one image of a server that is down would
each find that out for themselves, one after the other.
"""

from __future__ import annotations

import contextlib
import json
import time

from hpcimg import atomic, processes
from hpcimg.cache.layout import Layout
from hpcimg.errors import HpcimgError, from_dict


def record(layout: Layout, ref_id: str, error: HpcimgError) -> None:
    """Write down that fetching a reference failed now. Hold the reference's lock."""
    fields = {"time": time.monotonic(), **error.to_dict()}
    temp = processes.temp_path(layout.state_tmp, ref_id)
    with contextlib.suppress(OSError):  # then the next one finds out for itself
        atomic.write_file(layout.failure(ref_id), json.dumps(fields), temp=temp, mode=0o600)


def since(layout: Layout, ref_id: str, began: float) -> HpcimgError | None:
    """Return the failure after `began`, a time.monotonic() value of this boot, if there was one."""
    try:
        with open(layout.failure(ref_id), encoding="utf-8") as file:
            fields = json.load(file)
        return from_dict(fields) if fields["time"] > began else None
    except (OSError, ValueError, KeyError):
        return None
