"""The environment that the demo's story runs in."""

from __future__ import annotations

import abc
import os
import struct
from pathlib import Path
from typing import Any, Self

from tests.parts import images

SIZE_BYTES = 24 << 20
RATE_BYTES_PER_S = 12 << 20  # the link to the registry, so that there is something to watch
HELLO = "Hello from inside the image.\n"
CACHE_SIZE = "40M"  # holds one image and not two


def script(read_image: Path, launcher: str = "") -> str:
    """Return what each job does: show where its image is, and read a file in it.

    launcher: what runs a command on all nodes of the job. Without squashfs-tools the file is
    looked for in the image as it lies there; `make_image` sees to it that it can be.
    """
    read = f'{read_image} "$HPCIMG_IMAGE" hello'
    if images.missing():
        read = f'grep -ao "{HELLO.strip()}" "$HPCIMG_IMAGE"'
    return f"""#!/bin/sh
{launcher} sh -c 'echo "HPCIMG_IMAGE=$HPCIMG_IMAGE"; {read}'
"""


def make_image(path: Path) -> Path:
    """Make a SIF image of the demo's size, unlike all others, with HELLO in a file `hello`."""
    if not images.missing():
        return images.make_sif(path, {"hello": HELLO.encode()}, size_bytes=SIZE_BYTES)
    content = path.with_suffix(".content")
    data = HELLO.encode() + os.urandom(SIZE_BYTES)
    # As much of a superblock as is looked at: version 4.0, and the size.
    superblock = struct.pack("<4s24xHH8xQ48x", b"hsqs", 4, 0, 96 + len(data))
    content.write_bytes(superblock + data)
    return images.make_sif(path, squashfs=content)


class Job(abc.ABC):
    """One job. `title` says what it demonstrates."""

    def __init__(self, title: str, nodes: list[str]) -> None:
        self.title = title
        self.nodes = nodes

    @abc.abstractmethod
    def state(self) -> str:
        """Return the state as Slurm names it."""

    @abc.abstractmethod
    def output(self) -> str:
        """Return what is in the job's output file."""

    def ended(self) -> bool:
        return self.state() in ("COMPLETED", "FAILED")


class Place(abc.ABC):
    """Nodes with hpcimg's hooks, and a server with images on a slow link. A context manager."""

    nodes = ("n1", "n2", "n3")

    @abc.abstractmethod
    def __enter__(self) -> Self: ...

    @abc.abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abc.abstractmethod
    def describe(self) -> str:
        """Say what runs here."""

    @abc.abstractmethod
    def publish(self, image: Path, name: str) -> str:
        """Put an image on the server; return its reference."""

    @abc.abstractmethod
    def downloads(self, name: str) -> int:
        """Return how often the image was downloaded."""

    @abc.abstractmethod
    def submit(self, title: str, comment: str, *, nodes: list[str]) -> Job:
        """Submit a job as an ordinary user."""

    @abc.abstractmethod
    def hpcimg(self, node: str, *arguments: str) -> str:
        """Return what the command prints on a node."""

    @abc.abstractmethod
    def status(self, node: str) -> dict[str, Any]:
        """Return `hpcimg status --json` of a node."""

    @abc.abstractmethod
    def drained(self) -> list[str]:
        """Return the nodes that Slurm has drained, with the reasons."""
