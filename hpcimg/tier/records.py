"""The site tier's records: the image that a reference stands for, or why it could not be fetched.

Each record is a small file that is replaced atomically. Unknown fields, written by another release,
are ignored. A record that cannot be parsed counts as missing.
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
    """An image in the tier, and the reference that it was fetched for.

    The fields are those of a cache entry and a reference; `resolved` is a Unix time.
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
        """Tell whether the reference is younger than `ttl_s`. One from the future is not."""
        return self.pinned or 0 <= time.time() - self.resolved < ttl_s

    def path(self, at: Places) -> str:
        return at.image(self.sha256, self.extension)


def from_fields(fields: Any) -> Record:
    """Make a record from parsed JSON. Raises ValueError."""
    try:
        record = Record(**{name: fields[name] for name in Record._fields})
    except (KeyError, TypeError):
        raise ValueError("it is not a record") from None
    texts = (record.uri, record.key, record.extension, record.sha256, record.source)
    numbers = (record.size_bytes, record.resolved)
    if not all(isinstance(text, str) for text in (*texts, record.validator)):
        raise ValueError("a field is not a string")
    if not all(isinstance(number, (int, float)) and number >= 0 for number in numbers):
        raise ValueError("a field is not a number")
    # These become file names.
    if not _SHA256.fullmatch(record.sha256) or not _EXTENSION.fullmatch(record.extension):
        raise ValueError("a name is malformed")
    return record


def load(path: str) -> Record | None:
    """Return a record, None if there is none. Raises OSError for I/O errors, Trouble."""
    fields = read(path)
    if fields is None:
        return None
    try:
        return from_fields(fields)
    except ValueError:
        return None


def read(path: str) -> dict[str, Any] | None:
    """Return the fields of a small file, None if it is missing or cannot be parsed."""
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
    """Write a record, replacing any at that path. Raises OSError."""
    atomic.write_file(
        path, json.dumps(fields) + "\n", temp=temp_path(at), mode=0o600, durable=durable
    )


def save_first(at: Places, path: str, fields: dict[str, Any]) -> None:
    """Write a record unless one exists at that path. Raises OSError."""
    # In the same directory: some file systems cannot link across directories.
    temp = f"{path}.{processes.tag()}"
    atomic.write_file(temp, json.dumps(fields) + "\n", temp=temp_path(at), mode=0o600)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temp, path)
    finally:
        atomic.remove(temp)


def temp_path(at: Places) -> str:
    """Return a new path for unfinished work, unique among nodes and processes."""
    return f"{at.tmp}/{processes.tag()}.{os.urandom(8).hex()}"
