"""A cache and its rules: where it is, how large it may be, which images it hands out."""

from __future__ import annotations

from typing import NamedTuple

from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry
from hpcimg.errors import TooLarge
from hpcimg.units import format_size


def check_allowed(limit: int, size_bytes: int, *, what: str) -> None:
    """Raise TooLarge for an image that is larger than the site's limit; 0 is none."""
    if limit and size_bytes > limit:
        raise TooLarge(
            f"{what} is too large", why=f"this site accepts images up to {format_size(limit)}"
        )


class Limits(NamedTuple):
    """How large the cache may be, in bytes; ages in seconds.

    `user_share` is what may be private to one user, 0 for no limit but the cache's.
    `max_images` is how many images and layers there may be, `min_free_files` how many inodes
    stay free; 0 for any number.
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

    `max_image_size` of 0 is no limit of its own; `image_format` is what images
    in layers are converted to, "sif" or "squashfs". `verified` names the policy
    that images have to be verified by to be handed out, "" for none. A job waits
    `patience_s` for another's fetch that gets less than `min_rate` bytes in a second.
    `other_format` says that `image_format` is not the site's: what references stand for
    is kept apart then.
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
        """Return the same cache for who needs images in layers in this format; "" for any."""
        if image_format in ("", self.image_format):
            return self
        return self._replace(image_format=image_format, other_format=True)

    @property
    def signed_only(self) -> bool:
        """Whether images have to have signatures of SIF."""
        return self.verified.partition(" ")[0] == "sif"

    def trusts(self, entry: Entry | None) -> bool:
        """Tell whether an image is there and may be handed out."""
        return entry is not None and entry.serves(self.verified)
