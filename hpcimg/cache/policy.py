"""A cache and its rules: where it is, its limits, which images it may hand out."""

from __future__ import annotations

from typing import NamedTuple

from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry
from hpcimg.errors import TooLarge
from hpcimg.units import format_size


def check_allowed(limit: int, size_bytes: int, *, what: str) -> None:
    """Raise TooLarge for an image above the site's limit; 0 is no limit."""
    if limit and size_bytes > limit:
        raise TooLarge(
            f"{what} is too large", why=f"this site accepts images up to {format_size(limit)}"
        )


class Limits(NamedTuple):
    """The limits of the cache, in bytes; ages in seconds.

    `user_share` is the maximum that may be private to one user, 0 for unlimited. `max_images` is
    the maximum number of images and layers, `min_free_files` the number of inodes to leave free; 0
    for unlimited.
    """

    max_size: int
    high: int
    low: int
    min_free: int
    min_age_s: float
    user_share: int = 0
    max_images: int = 0
    min_free_files: int = 0


class Cache(NamedTuple):
    """A cache and its rules.

    `max_image_size` of 0 is no limit; `image_format` is the format that images in layers are
    converted to, "sif" or "squashfs". `verified` names the policy that images must have been
    verified by, "" for none. A job waits `patience_s` for another's fetch that is slower than
    `min_rate` bytes per second. `other_format` means that `image_format` is not the site's default:
    references are then recorded separately.
    """

    layout: Layout
    limits: Limits
    tag_ttl_s: float
    max_image_size: int = 0
    image_format: str = "squashfs"
    verified: str = ""
    patience_s: float = 30.0
    min_rate: int = 128 << 10
    other_format: bool = False

    def converting_to(self, image_format: str) -> Cache:
        """Return the cache for a requester that needs images in this format; "" for any."""
        if image_format in ("", self.image_format):
            return self
        return self._replace(image_format=image_format, other_format=True)

    @property
    def image_bytes(self) -> int:
        """The size of the largest image that a worker may write: the kernel enforces it."""
        most = self.limits.max_size
        return min(most, self.max_image_size or most)

    @property
    def signed_only(self) -> bool:
        """Whether images must have SIF signatures."""
        return self.verified.partition(" ")[0] == "sif"

    def trusts(self, entry: Entry | None) -> bool:
        """Tell whether an image exists and may be handed out."""
        return entry is not None and entry.serves(self.verified)
