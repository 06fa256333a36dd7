"""This node's cache, as configured."""

from __future__ import annotations

import os

from hpcimg.cache import bounds, directories, events, failures, inflight, store
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache, Limits
from hpcimg.config.keys import Config
from hpcimg.convert import pick_format
from hpcimg.errors import CacheUnusable


def open_cache(config: Config) -> Cache:
    """Return the cache, with its directories created and leftovers of killed processes removed.

    Raises CacheUnusable.
    """
    layout = Layout(config.cache_path, config.state_path)
    directories.prepare(layout)
    failures.sweep(layout, age_s=max(config.error_ttl_s, config.deadline_s))
    bounds.keep(layout)
    swept = store.sweep(layout) + inflight.sweep(layout)
    if swept:
        events.record(layout.events, "sweep", files=swept)
    return cache_of(config)


def cache_of(config: Config) -> Cache:
    """Return the cache as it is. Raises CacheUnusable if it does not exist."""
    layout = Layout(config.cache_path, config.state_path)
    image_format = pick_format(config.format)
    return Cache(
        layout, limits(config), config.tag_ttl_s, config.max_image_size, image_format,
        verified_by(config), config.patience_s, config.min_rate,
    )  # fmt: skip


def verified_by(config: Config) -> str:
    """Return the name of the policy that images are verified by, "" for none."""
    return "" if config.verify == "none" else f"{config.verify} {config.keyring}".rstrip()


def limits(config: Config) -> Limits:
    """Return the cache's limits in bytes, for the file system that it is on."""
    try:
        seen = os.statvfs(config.cache_path)
    except OSError as error:
        raise CacheUnusable(
            f"{config.cache_path} cannot be used", why=error.strerror or ""
        ) from error
    total = seen.f_blocks * seen.f_frsize
    max_size = config.max_size.of(total)
    min_free = config.min_free.of(total)
    return Limits(
        max_size=max_size,
        high=int(max_size * config.high_watermark / 100),
        low=int(max_size * config.low_watermark / 100),
        min_free=min_free,
        min_age_s=config.min_age_s,
        user_share=config.max_user_share.of(max_size),
        max_images=config.max_images,
        # The same percentage of inodes as of bytes; none if the file system does not limit them.
        min_free_files=seen.f_files * min_free // total if total else 0,
    )
