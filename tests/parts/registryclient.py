"""The registry client, in this process, and the messages that it sends."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hpcimg import imagename
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.session import open_session
from hpcimg.sources.oci.registry import Registry
from tests.parts.node import LOOPBACK
from tests.parts.parents import Parent
from tests.parts.registry import PASSWORD, USER
from tests.parts.tokenserver import basic


def auth_file(host: str, **fields: str) -> str:
    """Return a docker config.json with USER's login, or with `fields` in place of it."""
    login = fields or {"auth": basic(USER, PASSWORD).removeprefix("Basic ")}
    return json.dumps({"auths": {host: login}})


class _Parent(Parent):
    """Knows the digest of a file."""

    def __init__(self, content: Callable[[], bytes]) -> None:
        super().__init__()
        self._content = content

    def digest(self, layer: int | None) -> str:
        super().digest(layer)
        return hashlib.sha256(self._content()).hexdigest()


class Target:
    """A sink with its file in memory."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("target")
        self.parent = _Parent(self.content)
        self.sink = Sink(self.descriptor, self.parent)

    def content(self) -> bytes:
        """Return what was written."""
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    def retries(self) -> list[str]:
        """Return why attempts failed."""
        return [why for why, _ in self.parent.heard("retrying")]


Connect = Callable[..., Registry]


@contextmanager
def connected(target: Target) -> Iterator[Connect]:
    """Make clients: `connect("HOST/REPOSITORY:TAG", credentials=..., ...)`, with plain http."""
    with open_session(Settings(3, 0.0, 5, 5, networks=tuple(LOOPBACK.split()))) as session:

        def connect(rest: str, **settings: Any) -> Registry:
            given = Settings(
                tries=3,
                deadline=time.monotonic() + 30,
                connect_timeout_s=5,
                stall_timeout_s=5,
                insecure=True,
            )
            uri = f"oras://{rest}"
            given = given._replace(**settings)
            return Registry(session, imagename.parse(rest), target.sink, given, uri=uri)

        yield connect
    os.close(target.descriptor)
