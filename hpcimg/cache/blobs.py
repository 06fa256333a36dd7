"""The layers of one image: those that the cache has as blobs, and files for the rest.

A blob is an entry of the cache like an image, for the next image that shares it:
last used first evicted, but never handed to a job. It is not flushed to the disk
when it is stored; its digest is looked at again whenever it is used.
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
    """Files of the blobs of one image, all closed and the unfinished ones gone at the end.

    `lock` takes a lock by its name; those of blobs that have to be fetched are
    held until `release`. `deadline` is a time.monotonic() value, beyond which nothing is read.
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

    def missing(self) -> list[Blob]:
        """Open what the cache has, with its digest checked; return and lock what it has not.

        Raises DeadlinePassed.
        """
        wanted = []
        unique = {blob.sha256: blob for blob in self._blobs}
        # In the order of their digests: two images that share several cannot lock each other out.
        for _, blob in sorted(unique.items()):
            if not self._open(blob):
                self._locks.enter_context(self._lock(fetching(self._key(blob))))
                if not self._open(blob):
                    wanted.append(blob)
        return wanted

    def files(self) -> Files:
        """Make a file for each blob that is missing; return them by the blobs' numbers."""
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
        """Keep a blob that is what its digest says. One that is not stays missing."""
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
        # Who converts is to read it, and no more.
        self._readable[blob.sha256] = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
        self.callback(os.close, self._readable[blob.sha256])

    def unfinished(self) -> list[int]:
        """Return the files of what was missing."""
        return [file for _, file in self._unfinished.values()]

    def written(self) -> int:
        """Return how many bytes are in them."""
        return sum(os.fstat(file).st_size for file in self.unfinished())

    def release(self) -> None:
        """Give the locks back: what could be fetched is there for others now."""
        self._locks.close()

    def readable(self) -> list[int]:
        """Return descriptors of all blobs in their order. Raises Damaged where one is wrong."""
        for number, blob in enumerate(self._blobs):
            if blob.sha256 not in self._readable:
                raise Damaged(
                    f"{self._uri} is not what was announced",
                    why=f"layer {number + 1} of {len(self._blobs)} does not have the length and "
                    "the digest that its manifest says",
                )
        return [self._readable[blob.sha256] for blob in self._blobs]

    def _open(self, blob: Blob) -> bool:
        entry = store.load_entry(self._layout, self._key(blob))
        if entry is None:
            return False
        try:
            store.mark_used(self._layout, entry.key)
            path = store.path_of(self._layout, entry)
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, BlockingIOError):  # evicted meanwhile; its owner's lease
            return False
        self.callback(os.close, file)
        found = digests.of_file(file, uri=self._uri, deadline=self._deadline)
        if found.sha256 != blob.sha256:
            return False
        self._readable[blob.sha256] = file
        return True

    def _key(self, blob: Blob) -> str:
        return owned(f"blob-sha256-{blob.sha256}", self._owner)
