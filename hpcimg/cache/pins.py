"""Pins: images that an administrator keeps on this node until they are unpinned.

`pins/<key>.json` in the cache directory, so that they survive a reboot. They are created and
removed under the key's lock, and eviction checks for one under that lock. A pin stays when its
image is gone, and applies again when the image returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import NamedTuple

from hpcimg import atomic, processes
from hpcimg.cache.paths import Layout
from hpcimg.errors import explained

_VERSION = 1


class Pin(NamedTuple):
    """Who pinned an image, and when as a Unix time."""

    key: str
    by: str
    time: float


@explained()
def add(layout: Layout, key: str, *, by: str) -> Pin:
    """Pin an image. Hold its lock. The first who pinned it is remembered."""
    known = load(layout, key)
    if known:
        return known
    os.makedirs(layout.pins, mode=0o755, exist_ok=True)  # missing in caches of older releases
    pin = Pin(key, by, time.time())
    text = json.dumps({"version": _VERSION, **pin._asdict()}) + "\n"
    temp = processes.temp_path(layout.tmp, f"{key}.pin")
    atomic.write_file(layout.pin(key), text, temp=temp, durable=True)
    return pin


@explained()
def remove(layout: Layout, key: str) -> bool:
    """Unpin an image; return whether it was pinned. Hold its lock."""
    return atomic.remove(layout.pin(key))


def load(layout: Layout, key: str) -> Pin | None:
    """Return the pin of an image. An invalid file is still a pin."""
    by, when = "", 0.0
    try:
        with open(layout.pin(key), encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        fields = json.loads(text)
        by, when = str(fields["by"]), float(fields["time"])
    return Pin(key, by, when)


def keys(layout: Layout) -> set[str]:
    """Return the keys of all pinned images."""
    try:
        names = os.listdir(layout.pins)
    except FileNotFoundError:
        return set()
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}
