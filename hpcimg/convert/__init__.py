"""Making one image file of the layers of an OCI image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hpcimg.errors import MissingTool


class Work(NamedTuple):
    """One conversion."""

    uri: str
    config: str
    layers: tuple[int, ...]
    output: int
    folder: str
    format: str
    compression: str
    max_unpacked_bytes: int


def pick_format(wanted: str) -> str:
    """Return the format that images are converted to."""
    return "squashfs" if wanted == "auto" else wanted


def convert(work: Work, tell: Callable[[int, int], None]) -> None:
    """Write the image file. Raises MissingTool."""
    del tell
    raise MissingTool(f"{work.uri} cannot be converted", why="this is not written yet")
