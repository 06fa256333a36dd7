"""The state of this node, collected for operators."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from hpcimg import health, node
from hpcimg.cache import directories, evict, history, index, inflight, lease, pins, scrub
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Limits
from hpcimg.cache.store import Entry
from hpcimg.cache.sums import Sums
from hpcimg.config import files as conffiles
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError

_FAILURES_SHOWN = 5


class Held(NamedTuple):
    """A number of images or layers, and their total size in bytes."""

    number: int
    size_bytes: int


class Seen(NamedTuple):
    """The state of the node. `held` means in use or pinned.

    `limits` and `free_bytes` are None if they are not available, `free_files` (inodes) also if they
    are not limited.
    """

    images: Held
    layers: Held
    in_use: Held
    pinned: Held
    held: Held
    limits: Limits | None
    free_bytes: int | None
    free_files: int | None
    staging: list[dict[str, Any]]
    jobs: dict[str, list[str]]
    sums: Sums
    failures: list[dict[str, Any]]
    problems: list[str]


def look(config: Config) -> Seen:
    """Collect the state of cache, downloads in progress, jobs and events.

    Read-only, so anybody may call it; private images are visible only to root.
    """
    layout = Layout(config.cache_path, config.state_path)
    entries = [entry for entry, _ in index.entries(layout)]
    jobs = lease.by_job(layout)
    in_use = {key for keys in jobs.values() for key in keys}
    pinned = pins.keys(layout)
    problems: list[str] = []
    limits = free = files = None
    if os.path.isdir(layout.cache):
        try:
            limits = node.limits(config)
            free, files = evict.free_on_disk(layout), evict.free_files(layout)
            held = _held(entries)
            problems = health.full(
                held.size_bytes, free, limits, images=held.number, free_files=files
            )
            if os.access(layout.cache, os.W_OK):  # of its owner: to others it is as it should be
                directories.check(layout)
        except HpcimgError as error:
            problems.append(str(error))
    failures = [event for event in history.recent(layout) if event["event"] == "failed"]
    return Seen(
        images=_held(entry for entry in entries if not entry.is_blob),
        layers=_held(entry for entry in entries if entry.is_blob),
        in_use=_held(entry for entry in entries if entry.key in in_use),
        pinned=_held(entry for entry in entries if entry.key in pinned),
        held=_held(entry for entry in entries if entry.key in in_use | pinned),
        limits=limits,
        free_bytes=free,
        free_files=files,
        staging=inflight.under_way(layout),
        jobs=jobs,
        sums=history.sums(layout),
        failures=failures[-_FAILURES_SHOWN:],
        problems=problems,
    )


def _held(entries: Iterable[Entry]) -> Held:
    sizes = [entry.size_bytes for entry in entries]
    return Held(len(sizes), sum(sizes))


def gather(config: Config) -> dict[str, Any]:
    """Return the result of `look` in the form of the JSON output."""
    layout = Layout(config.cache_path, config.state_path)
    seen = look(config)
    cache: dict[str, Any] = {
        "path": layout.cache,
        "images": seen.images.number,
        "layers": seen.layers.number,
        "bytes": seen.images.size_bytes + seen.layers.size_bytes,
        "layer_bytes": seen.layers.size_bytes,
        "in_use_images": seen.in_use.number,
        "in_use_bytes": seen.in_use.size_bytes,
        "pinned_images": seen.pinned.number,
        "pinned_bytes": seen.pinned.size_bytes,
    }
    if not os.path.isdir(layout.cache):
        cache["note"] = "no image was staged here yet"
    if seen.limits:
        cache.update(
            free_bytes=seen.free_bytes, free_files=seen.free_files, **seen.limits._asdict()
        )
    served, fetched = seen.sums.total("served_bytes"), seen.sums.total("fetched_bytes")
    last = scrub.last(layout)
    return {
        "node": conffiles.node_name(),
        "cache": cache,
        "staging": seen.staging,
        "jobs": seen.jobs,
        "counts": {name: int(count) for name, count in seen.sums.family("events").items()},
        "served_bytes": int(served),
        "fetched_bytes": int(fetched),
        "saved_bytes": int(served - fetched),
        "via": {via: int(size) for via, size in seen.sums.family("fetched_via").items()},
        "verified": last._asdict() if last else None,
        "failures": seen.failures,
        "problems": seen.problems,
    }
