"""The layers of one image: those that the cache has as blobs, and files for the rest.

A blob is a cache entry like an image, kept for the next image that shares it: evicted when it is
the least recently used, but never given to a job. It is not flushed to disk when it is stored; its
digest is verified each time it is used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

from hpcimg import digests
from hpcimg.cache import store
from hpcimg.cache.paths import Layout, fetching, owned
from hpcimg.cache.store import BLOB, Entry
from hpcimg.errors import Damaged
from hpcimg.fetch.contract import Blob, Fetched, Files
from hpcimg.locks import Lock


class Blobs(ExitStack):
    """The files of one image's blobs; at the end they are closed, and unfinished ones removed.

    `lock` takes a lock by its name; those of blobs to be fetched are held until `release`.
    `deadline` is a time.monotonic() value, after which nothing is read.
    """

    def __init__(
        self,
        layout: Layout,
        blobs: Sequence[Blob],
        *,
        uri: str,
        owner: int | None,
        lock: Lock,
        deadline: float,
    ) -> None:
        super().__init__()
        self._layout = layout
        self._blobs = blobs
        self._uri = uri
        self._owner = owner
        self._lock = lock
        self._deadline = deadline
        self._locks = self.enter_context(ExitStack())
        self._readable: dict[str, int] = {}
        self._unfinished: dict[int, tuple[str, int]] = {}
        self.kept_bytes = 0  # of those that arrived

    def missing(self) -> list[Blob]:
        """Open the blobs that the cache has, verified; return and lock those that are missing.

        Raises DeadlinePassed.
        """
        wanted = []
        unique = {blob.sha256: blob for blob in self._blobs}
        # In the order of their digests, so that two images that share several cannot deadlock.
        for _, blob in sorted(unique.items()):
            if not self._open(blob):
                self._locks.enter_context(self._lock(fetching(self._key(blob))))
                if not self._open(blob):
                    wanted.append(blob)
        return wanted

    def files(self) -> Files:
        """Create a file for each missing blob; return them by the blobs' numbers."""
        files: list[int | None] = []
        made = set()
        for number, blob in enumerate(self._blobs):
            if blob.sha256 in self._readable or blob.sha256 in made:
                files.append(None)
                continue
            made.add(blob.sha256)
            path, file = self.enter_context(store.unfinished(self._layout, self._key(blob)))
            self._unfinished[number] = path, file
            files.append(file)
        return files

    def arrived(self, number: int, fetched: Fetched) -> None:
        """Keep a blob if it matches its digest; otherwise it stays missing."""
        blob = self._blobs[number]
        if fetched != (blob.size_bytes, blob.sha256):
            return
        path, file = self._unfinished[number]
        entry = Entry(
            key=self._key(blob), extension=BLOB, sha256=blob.sha256, size_bytes=blob.size_bytes,
            architecture="", uris=(self._uri,), fetched=time.time(), owner=self._owner,
        )  # fmt: skip
        with self._lock(entry.key):
            store.publish(self._layout, entry, path, file, durable=False)
        # The conversion only reads it.
        self._readable[blob.sha256] = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
        self.callback(os.close, self._readable[blob.sha256])
        self.kept_bytes += blob.size_bytes

    def unfinished(self) -> list[int]:
        """Return the files of the missing blobs, including those that have arrived."""
        return [file for _, file in self._unfinished.values()]

    def written(self) -> int:
        """Return the number of bytes in them."""
        return sum(os.fstat(file).st_size for file in self.unfinished())

    def release(self) -> None:
        """Release the locks: other processes can now use what was fetched."""
        self._locks.close()

    def readable(self) -> dict[int, int]:
        """Return descriptors of the blobs that are there, by their numbers."""
        return {
            number: self._readable[blob.sha256]
            for number, blob in enumerate(self._blobs)
            if blob.sha256 in self._readable
        }

    def check(self) -> None:
        """Raise Damaged unless all are there."""
        there = self.readable()
        for number in range(len(self._blobs)):
            if number not in there:
                raise Damaged(
                    f"{self._uri} is not what was announced",
                    why=f"layer {number + 1} of {len(self._blobs)} does not have the length and "
                    "the digest that its manifest says",
                )

    def _open(self, blob: Blob) -> bool:
        entry = store.load_entry(self._layout, self._key(blob))
        if entry is None:
            return False
        try:
            store.mark_used(self._layout, entry.key)
            path = store.path_of(self._layout, entry)
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, BlockingIOError):  # evicted meanwhile, or leased by its owner
            return False
        self.callback(os.close, file)
        found = digests.of_file(file, uri=self._uri, deadline=self._deadline)
        if found.sha256 != blob.sha256:
            return False
        self._readable[blob.sha256] = file
        return True

    def _key(self, blob: Blob) -> str:
        return owned(f"blob-sha256-{blob.sha256}", self._owner)
