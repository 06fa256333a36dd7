"""Fixtures for tests of whole hooks."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.parts import images
from tests.parts.node import Node
from tests.parts.registry import Registry
from tests.parts.registryclient import Connect, Target, connected
from tests.parts.webserver import WebServer

MakeSif = Callable[..., bytes]
Start = Callable[[Node, int, str], subprocess.Popen[str]]


@pytest.fixture
def make_sif(tmp_path: Path) -> MakeSif:
    """Make SIF images, each unlike all others: `make_sif(size_bytes=..., arch=...)`."""
    if missing := images.missing():
        pytest.skip(missing)
    numbers = itertools.count()

    def make(*, size_bytes: int = 400_000, arch: str = "") -> bytes:
        path = tmp_path / f"made-{next(numbers)}.sif"
        content = {"hello": b"world", "unique": os.urandom(16)}
        return images.make_sif(path, content, size_bytes=size_bytes, arch=arch).read_bytes()

    return make


@pytest.fixture
def sif(make_sif: MakeSif) -> bytes:
    """A SIF image."""
    return make_sif()


@pytest.fixture
def url(web: WebServer, sif: bytes) -> str:
    """The address of that image."""
    return web.put("/x.sif", sif, etag='"1"')


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry without images."""
    if missing := Registry.missing():
        pytest.skip(missing)
    with Registry() as registry:
        yield registry


@pytest.fixture
def target() -> Target:
    """Where a client writes what it downloads."""
    return Target()


@pytest.fixture
def connect(target: Target) -> Iterator[Connect]:
    """Make clients of registries: `connect("HOST/REPOSITORY:TAG", ...)`."""
    with connected(target) as connect:
        yield connect


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Prologs: `start(node, job, comment)`. None outlives its test."""
    with ExitStack() as stack:

        def start(node: Node, job: int, comment: str) -> subprocess.Popen[str]:
            process = stack.enter_context(node.start_prolog(job, comment))
            stack.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen[str]) -> None:
    """Kill a Prolog and everything that it started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
