"""What is going on on this node, gathered for operators."""

from __future__ import annotations

import os
from typing import Any

from hpcimg import health, node
from hpcimg.cache import evict, history, inflight, lease, store
from hpcimg.cache.paths import Layout
from hpcimg.config import files as conffiles
from hpcimg.config.keys import Config
from hpcimg.errors import HpcimgError

_FAILURES_SHOWN = 5


def gather(config: Config) -> dict[str, Any]:
    """Return cache, downloads under way, jobs, counts, last failures and problems.

    Reads only, so anybody may call it; what is private is seen by root alone.
    """
    layout = Layout(config.cache_path, config.state_path)
    entries = list(store.entries(layout))
    holders = {entry.key: lease.holders(layout, entry.key) for entry in entries}
    problems: list[str] = []
    cache: dict[str, Any] = {
        "path": layout.cache,
        "images": sum(1 for entry in entries if not entry.is_blob),
        "layers": sum(1 for entry in entries if entry.is_blob),
        "bytes": sum(entry.size_bytes for entry in entries),
        "layer_bytes": sum(entry.size_bytes for entry in entries if entry.is_blob),
        "in_use_images": sum(1 for jobs in holders.values() if jobs),
        "in_use_bytes": sum(entry.size_bytes for entry in entries if holders[entry.key]),
    }
    if not os.path.isdir(layout.cache):
        cache["note"] = "no image was staged here yet"
    else:
        problems += _measure(config, layout, cache)
    jobs = sorted(lease.all_jobs(layout), key=lease.by_number)
    failures = [event for event in history.recent(layout) if event["event"] == "failed"]
    return {
        "node": conffiles.node_name(),
        "cache": cache,
        "staging": inflight.under_way(layout),
        "jobs": {job: _images_of(job, holders) for job in jobs},
        "counts": history.totals(layout),
        "failures": failures[-_FAILURES_SHOWN:],
        "problems": problems,
    }


def _measure(config: Config, layout: Layout, cache: dict[str, Any]) -> list[str]:
    """Add to `cache` how much there may be and is; return what is wrong with that."""
    try:
        limits = node.limits(config)
    except HpcimgError as error:
        return [str(error)]
    free, files = evict.free_on_disk(layout), evict.free_files(layout)
    cache.update(free_bytes=free, free_files=files, **limits._asdict())
    images = cache["images"] + cache["layers"]
    return health.full(cache["bytes"], free, limits, images=images, free_files=files)


def _images_of(job: str, holders: dict[str, list[str]]) -> list[str]:
    return [key for key, jobs in holders.items() if job in jobs]
