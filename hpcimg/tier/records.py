"""What the site tier knows: which image a reference stands for, and why one could not be had.

Each record is a small file that appears whole or not at all. What another release has
put into one besides is passed over, and what cannot be understood is not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import Any, NamedTuple

from hpcimg import atomic, processes
from hpcimg.tier import places
from hpcimg.tier.places import Places

_SHA256 = re.compile(r"[0-9a-f]{64}")
_EXTENSION = re.compile(r"[a-z]{1,16}")
_MAX = 1 << 20


class Record(NamedTuple):
    """An image of the tier, and the reference that it was fetched for.

    The fields are those of a cache's entry and reference; `resolved` is a Unix time.
    """

    uri: str
    key: str
    extension: str
    sha256: str
    size_bytes: int
    source: str
    validator: str
    resolved: float
    pinned: bool = False

    def fresh(self, ttl_s: float) -> bool:
        """Tell whether the reference is still to be believed; not where it is of the future."""
        return self.pinned or 0 <= time.time() - self.resolved < ttl_s

    def path(self, at: Places) -> str:
        return at.image(self.sha256, self.extension)


def from_fields(fields: Any) -> Record:
    """Make a record of what came as JSON. Raises ValueError."""
    try:
        record = Record(**{name: fields[name] for name in Record._fields})
    except (KeyError, TypeError):
        raise ValueError("it is not a record") from None
    texts = (record.uri, record.key, record.extension, record.sha256, record.source)
    numbers = (record.size_bytes, record.resolved)
    if not all(isinstance(text, str) for text in (*texts, record.validator)):
        raise ValueError("it has something other than a text")
    if not all(isinstance(number, (int, float)) and number >= 0 for number in numbers):
        raise ValueError("it has something other than a number")
    # They become names of files.
    if not _SHA256.fullmatch(record.sha256) or not _EXTENSION.fullmatch(record.extension):
        raise ValueError("it has a malformed name")
    return record


def load(path: str) -> Record | None:
    """Return a record, None where there is none. Raises OSError for a broken disk, Trouble."""
    fields = read(path)
    if fields is None:
        return None
    try:
        return from_fields(fields)
    except ValueError:
        return None


def read(path: str) -> dict[str, Any] | None:
    """Return the fields of a small file; None where it is missing or cannot be understood."""
    try:
        descriptor, seen = places.open_file(path)
    except FileNotFoundError:
        return None
    try:
        data = os.read(descriptor, _MAX) if seen.st_size < _MAX else b""
    finally:
        os.close(descriptor)
    with contextlib.suppress(ValueError):
        fields = json.loads(data)
        return fields if isinstance(fields, dict) else None
    return None


def save(at: Places, path: str, fields: dict[str, Any], *, durable: bool = True) -> None:
    """Put a record at its path, over any that is there. Raises OSError."""
    atomic.write_file(
        path, json.dumps(fields) + "\n", temp=temp_path(at), mode=0o600, durable=durable
    )


def save_first(at: Places, path: str, fields: dict[str, Any]) -> None:
    """Put a record at its path unless there is one. Raises OSError."""
    # In the same directory, which some file systems ask for.
    temp = f"{path}.{processes.tag()}"
    atomic.write_file(temp, json.dumps(fields) + "\n", temp=temp_path(at), mode=0o600)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temp, path)
    finally:
        atomic.remove(temp)


def temp_path(at: Places) -> str:
    """Return a new path for unfinished work: of no other node, and of no other process."""
    return f"{at.tmp}/{processes.tag()}.{os.urandom(8).hex()}"
