"""Slurm's compressed lists of nodes, such as `n[1-3,07-09],gpu1`, written out."""

from __future__ import annotations

import re

_NODES_MAX = 65_536
_TEXT_MAX = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,253}")
# What stands between commas that are in no brackets.
_PART = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def expand(text: str) -> tuple[str, ...]:
    """Return the names of the nodes in a list, each once. Raises ValueError for what is none."""
    if len(text) > _TEXT_MAX:
        raise ValueError("the list of nodes is too long")
    names: dict[str, None] = {}
    parts = _PART.findall(text)
    if ",".join(parts) != text:
        raise ValueError("a malformed list of nodes")
    for part in parts:
        names.update(dict.fromkeys(_expand(part, _NODES_MAX - len(names))))
    return tuple(names)


def _expand(part: str, most: int) -> list[str]:
    names = [""]
    for piece in re.findall(r"\[[^\[\]]*\]|[^\[\]]+", part):
        choices = _numbers(piece[1:-1], most) if piece.startswith("[") else [piece]
        if len(names) * len(choices) > most:
            raise ValueError("the list of nodes is too long")
        names = [name + choice for name in names for choice in choices]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError("a malformed name of a node")
    return names


def _numbers(text: str, most: int) -> list[str]:
    found: list[str] = []
    for word in text.split(","):
        match = _RANGE.fullmatch(word)
        if match is None:
            raise ValueError("a malformed range of nodes")
        first, last = match[1], match[2] or match[1]
        if not int(first) <= int(last) < int(first) + most:
            raise ValueError("the list of nodes is too long")
        width = len(first)
        found += [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
        if len(found) > most:
            raise ValueError("the list of nodes is too long")
    return found
