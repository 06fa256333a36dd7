"""Nodes of one cluster on this host, with separate caches and a shared directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.parts.node import Node


class Cluster:
    """Nodes below a directory, with `shared` as their site tier. `settings` are as a node's."""

    def __init__(self, directory: Path, shared: Path, settings: str = "", *, nodes: int) -> None:
        self.shared = shared
        self.nodes: Sequence[Node] = [
            self.node(directory / f"n{number}", settings) for number in range(1, nodes + 1)
        ]

    def node(self, directory: Path, settings: str = "") -> Node:
        """Create a node."""
        directory.mkdir()
        node = Node(directory)
        self.configure(node, settings)
        return node

    def configure(self, node: Node, settings: str = "") -> None:
        """Write a node's configuration; the settings begin in the section [site]."""
        node.configure(f"[site]\npath = {self.shared}\n{settings}")

    def images(self) -> list[Path]:
        """Return the images of the tier."""
        return sorted(self.shared.glob("v*/images/*"))

    def leftovers(self) -> list[Path]:
        """Return the files that may exist only while work is in progress."""
        return [
            path for name in ("tmp", "readers") for path in self.shared.glob(f"v*/{name}/*")
        ] + [path for path in self.shared.glob("v*/leases/*") if path.stat().st_size]

    def records(self) -> list[dict[str, Any]]:
        """Return the tier's records of references."""
        return [json.loads(path.read_text()) for path in self.shared.glob("v*/refs/*.json")]


def via(node: Node) -> list[str]:
    """Return where the images fetched on a node came from."""
    return [event["via"] for event in events(node, "fetched")]


def events(node: Node, name: str) -> list[dict[str, Any]]:
    """Return the events of one kind on a node."""
    path = node.state / "events.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [event for event in found if event["event"] == name]
