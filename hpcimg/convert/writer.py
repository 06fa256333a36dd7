"""Writing the remaining members of an image, within its limits."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from hpcimg.convert import sparse
from hpcimg.convert.layers import Reader
from hpcimg.convert.receiver import Receiver
from hpcimg.convert.tar import DIRECTORY, FILE, LINK, Member
from hpcimg.errors import NotAnImage, TooLarge

# About 2 GiB of memory, and many times more than real images have.
_MOST_NAMES = 10_000_000
_MOST_NAME_BYTES = 1 << 30
_DIRECTORY_MODE = 0o755


class Attributes(NamedTuple):
    """A directory's attributes from a layer."""

    mode: int
    mtime: int


class Budget:
    """Limits the memory for names in an image."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._names = self._bytes = 0

    def spend(self, name_bytes: int, *, names: int = 1) -> None:
        """Count a name. Raises NotAnImage."""
        self._names += names
        self._bytes += name_bytes
        if self._names > _MOST_NAMES or self._bytes > _MOST_NAME_BYTES:
            raise NotAnImage(
                f"{self._uri} cannot be converted",
                why=f"it has more than {_MOST_NAMES} files, or too long names",
                do="Use an image with fewer files.",
            )


class Writer:
    """Writes to a receiver. `limit_bytes` limits the total size of files, 0 is no limit."""

    def __init__(self, receiver: Receiver, uri: str, limit_bytes: int) -> None:
        self.uri = uri
        self.now = int(time.time())
        self._receiver = receiver
        self._limit_bytes = limit_bytes

    def write(self, member: Member, reader: Reader) -> None:
        """Write a member of a layer. Raises TooLarge, and errors from reading the layer."""
        content: Iterable[bytes] = ()
        if member.kind == FILE:
            limit = self._limit_bytes
            if limit and self._receiver.content_bytes + member.size > limit:
                raise TooLarge(
                    f"{self.uri} is too large", why=f"its files add up to more than {limit} bytes"
                )
            if member.segments is None:
                content = reader.copy(member.size)
            else:
                content = sparse.content(member.segments, member.size, reader)
        self._receiver.add(member, content)

    def write_as(self, names: list[bytes], member: Member, reader: Reader) -> None:
        """Write a member of a layer under the first name, and hard links for the others."""
        first, *others = names
        self.write(member._replace(name=first), reader)
        self.link(others, first, member)

    def link(self, names: list[bytes], target: bytes, member: Member) -> None:
        """Write hard links to a written file."""
        for name in names:
            self._receiver.add(Member(LINK, name, member.mode, member.mtime, target=target))

    def write_own(self, member: Member, content: bytes, name: bytes) -> None:
        """Write something that is in no layer, under this name."""
        self._receiver.add(member._replace(name=name, mtime=self.now), [content])

    def directory(self, name: bytes, told: Attributes | None) -> None:
        """Write a directory; without attributes from a layer it gets defaults."""
        mode, mtime = told or (_DIRECTORY_MODE, self.now)
        self._receiver.add(Member(DIRECTORY, name, mode, mtime))
