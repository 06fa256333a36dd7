"""The destination of a merged image's members: an archive stream, or a directory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from hpcimg.convert.tar import Member


class Receiver(Protocol):
    """Receives members one by one; each name once, the target of a hard link before it.

    `content_bytes` is the total size of the files so far, `disk_bytes` the disk space they take.
    """

    content_bytes: int
    disk_bytes: int

    def add(self, member: Member, content: Iterable[bytes] = ()) -> None:
        """Add a member; for a file, `content` yields its `size` bytes."""
