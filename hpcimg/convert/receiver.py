"""What takes the members of a merged image: an archive on its way, or a directory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from hpcimg.convert.tar import Member


class Receiver(Protocol):
    """Takes members one by one; each name comes once, the target of a hard link before it.

    `content_bytes` is what the files hold so far, `disk_bytes` what they take on the disk.
    """

    content_bytes: int
    disk_bytes: int

    def add(self, member: Member, content: Iterable[bytes] = ()) -> None:
        """Add a member; of a file, `content` yields its `size` bytes."""
