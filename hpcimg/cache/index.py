"""What the cache holds, without reading every record each time.

Two derived files in the state directory, each made anew whenever it does not
fit what is on the disk, and written by a rename: a process that is killed at any
moment leaves the old one, the new one, or none, and each of them does.

`sizes.json` has the number and the bytes of the finished files of each directory. They
never change, so a directory whose time of modification is the same still has the
same ones. They are an upper bound of what can be evicted: files without a record
are in it. It answers only whether there is anything to do at all; what is to go is
decided from the records and the files themselves.

`entries.json` has the records, for those who list them. One counts while its file
is the same inode with the same time of change, which a use of the image moves on,
too. That the image's own file is there is looked at each time.

Neither is ever a reason to hand out an image: that its file is whole, and root's, is
seen from the file itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from hpcimg import atomic, processes
from hpcimg.cache import store
from hpcimg.cache.paths import Layout
from hpcimg.cache.store import Entry

_VERSION = 1
_SETTLED_S = 1.0
_FIELDS = tuple(field.name for field in dataclasses.fields(Entry))
_WORTH_WRITING = 64  # records that had to be read


class Held(NamedTuple):
    """How much there is: bytes, and files."""

    size_bytes: int
    files: int


def held(layout: Layout) -> Held:
    """Return how much all finished files are; never less than `store.entries` adds up to."""
    known = _load(layout.sizes)
    found: dict[str, list[int]] = {}
    settled = _settled()
    size_bytes = files = 0
    for directory in _directories(layout):
        try:
            # Looked at before its files are: what comes later makes it another.
            seen = os.stat(directory)
        except FileNotFoundError:
            continue
        mark = [seen.st_dev, seen.st_ino, seen.st_mtime_ns]
        before: Any = known.get(directory)
        if _counts(before, mark):
            here = Held(before[3], before[4])
        else:
            here = _held_in(directory)
        if seen.st_mtime_ns < settled:
            found[directory] = [*mark, *here]
        size_bytes += here.size_bytes
        files += here.files
    if found != known:
        _save(layout, layout.sizes, found)
    return Held(size_bytes, files)


def _counts(row: Any, mark: list[int]) -> bool:
    """Tell whether a row says how much there still is."""
    if not isinstance(row, list) or len(row) != len(mark) + len(Held._fields):
        return False
    return row[:3] == mark and all(isinstance(number, int) for number in row)


def _settled() -> int:
    """Return the time, in nanoseconds, before which nothing can change any more unseen.

    Two changes within one tick of the kernel's clock leave the same time behind.
    """
    return time.time_ns() - int(_SETTLED_S * 1e9)


def _directories(layout: Layout) -> list[str]:
    directories = [layout.images, layout.blobs]
    with contextlib.suppress(OSError), os.scandir(layout.users) as users:
        directories += sorted(user.path for user in users if user.is_dir(follow_symlinks=False))
    return directories


def _held_in(directory: str) -> Held:
    sizes = []
    with os.scandir(directory) as files:
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(file.stat(follow_symlinks=False).st_size)
    return Held(sum(sizes), len(sizes))


def entries(layout: Layout) -> Iterator[tuple[Entry, float]]:
    """Give all finished images and blobs, each with its last use, in no order.

    Whether its file has its length is not looked at here: of ten thousand that
    takes as long as all else. Who removes or hands out an image looks.
    """
    known = _load(layout.records)
    found: dict[str, Any] = {}
    read, settled = 0, _settled()
    files = _names(layout)
    for key in store.keys(layout):
        try:
            seen = os.stat(layout.meta(key))
        except FileNotFoundError:
            continue
        mark = [seen.st_ino, seen.st_ctime_ns]
        row = known.get(key)
        entry = _entry(key, mark, row)
        if entry is None:
            entry = store.load_record(layout, key)
            read += 1
            if entry is None:
                continue
            row = [*mark, *(getattr(entry, name) for name in _FIELDS)]
        if seen.st_ctime_ns < settled:
            found[key] = row
        if f"{key}.{entry.extension}" in files:
            yield entry, seen.st_mtime
    if read >= _WORTH_WRITING or len(known) >= len(found) + _WORTH_WRITING:
        _save(layout, layout.records, found)


def _names(layout: Layout) -> set[str]:
    """Return the names of all finished files; a key says whose it is."""
    return {name for directory in _directories(layout) for name in _listdir(directory)}


def _listdir(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, PermissionError):  # layers are root's alone to see
        return []


def _entry(key: str, mark: list[int], row: Any) -> Entry | None:
    """Make an entry of a row that still counts. There may be tens of thousands."""
    if not isinstance(row, list) or len(row) != len(_FIELDS) + 2 or row[:2] != mark:
        return None
    fields = dict(zip(_FIELDS, row[2:], strict=True))
    uris = fields["uris"]
    if not (
        fields["key"] == key
        and isinstance(fields["extension"], str)
        and isinstance(fields["sha256"], str)
        and isinstance(fields["size_bytes"], int)
        and isinstance(uris, list)
    ):
        return None
    fields["uris"] = tuple(uris)
    entry = object.__new__(Entry)  # its own way, field by field, takes three times as long
    entry.__dict__.update(fields)
    return entry


def _load(path: str) -> dict[str, Any]:
    """Return what is there; nothing where it is not there, not ours, or cannot be understood."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        if fields["version"] == _VERSION and isinstance(fields["of"], dict):
            return dict(fields["of"])
    return {}


def _save(layout: Layout, path: str, found: dict[str, Any]) -> None:
    text = json.dumps({"version": _VERSION, "of": found}, separators=(",", ":"))
    temp = processes.temp_path(layout.state_tmp, os.path.basename(path))
    # Only root writes it, and reads it: private images are in it. Others take longer.
    with contextlib.suppress(OSError):
        atomic.write_file(path, text, temp=temp, mode=0o600)
