"""Computing the digest of an open file, within a deadline."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator

from hpcimg.errors import DeadlinePassed
from hpcimg.fetch.contract import Fetched

_CHUNK = 1 << 20
Steps = Generator[None, None, Fetched]


def of_file(descriptor: int, *, uri: str, deadline: float) -> Fetched:
    """Return the size and sha256 of the open file of the image `uri`.

    `deadline` is a time.monotonic() value. Raises DeadlinePassed.
    """
    return finish(in_steps(descriptor, uri=uri, deadline=deadline))


def finish(steps: Steps) -> Fetched:
    """Take the remaining steps, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            fetched: Fetched = end.value
            return fetched


def in_steps(descriptor: int, *, uri: str, deadline: float) -> Steps:
    """Return a generator that does the same as `of_file`, in steps of a few milliseconds."""
    digest, position = hashlib.sha256(), 0
    while data := os.pread(descriptor, _CHUNK, position):
        digest.update(data)
        position += len(data)
        if time.monotonic() > deadline:
            raise DeadlinePassed(
                f"{uri} was not ready in time",
                why="the deadline for staging passed before everything was checked",
            )
        yield
    return Fetched(position, digest.hexdigest())
