"""A parent that a sink reports to, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcimg.fetch.contract import Offer


class Parent:
    """Takes every offer, with `files` for its layers. `said` is what it heard, in order."""

    def __init__(self, files: Mapping[int, int] | None = None) -> None:
        self.files = files or {}
        self.said: list[tuple[Any, ...]] = []

    def offer(self, offer: Offer) -> Mapping[int, int] | None:
        self.said.append(("offer", offer))
        return self.files

    def digest(self, layer: int | None) -> str:
        self.said.append(("digest", layer))
        return f"digest {layer}"

    def moved(self, layer: int | None, done: int, total: int | None) -> None:
        self.said.append(("moved", layer, done, total))

    def rewound(self, layer: int | None) -> None:
        self.said.append(("rewound", layer))

    def complete(self, layer: int) -> None:
        self.said.append(("complete", layer))

    def retrying(self, why: str, wait_s: float) -> None:
        self.said.append(("retrying", why, wait_s))

    def heard(self, what: str) -> list[tuple[Any, ...]]:
        """Return the messages of one kind, without its name."""
        return [said[1:] for said in self.said if said[0] == what]
