"""The content of the cache, without reading every record each time.

Two derived files in the state directory, each rebuilt when it does not match the disk, and written
by a rename: a process killed at any moment leaves the old one, the new one, or none, all of which
work.

`sizes.json` has the number and size of the finished files of each directory. Finished files never
change, so a directory with the same modification time still has the same content. The sums are an
upper bound of what can be evicted, since they include files without a record. They only tell
whether there is anything to do; what to evict is decided from the records and the files themselves.

`entries.json` has the records, for listings. A record counts while its file has the same inode and
change time, which each use of the image updates. That the image's own file exists is checked each
time.

Neither is ever a reason to hand out an image: that its file is complete, and owned by root, is
checked on the file itself.
"""

from __future__ import annotations

import contextlib
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
_WORTH_WRITING = 64  # records that had to be read


class Held(NamedTuple):
    """A size in bytes and a number of files."""

    size_bytes: int
    files: int


def held(layout: Layout) -> Held:
    """Return the size and number of all finished files; an upper bound for `store.entries`."""
    known = _load(layout.sizes)
    found: dict[str, list[int]] = {}
    settled = _settled()
    size_bytes = files = 0
    for directory in _directories(layout):
        try:
            # Read before its files: later changes then make it different.
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
    """Tell whether a row is still valid."""
    if not isinstance(row, list) or len(row) != len(mark) + len(Held._fields):
        return False
    return row[:3] == mark and all(isinstance(number, int) for number in row)


def _settled() -> int:
    """Return the time, in nanoseconds, before which no change can have gone unnoticed.

    Two changes within one tick of the kernel's clock leave the same time.
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
    """Yield all finished images and blobs, each with its last use, in no particular order.

    The length of their files is not checked: for ten thousand files that takes as long as
    everything else. Whoever removes or hands out an image checks it.
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
            row = [*mark, *entry]
        if seen.st_ctime_ns < settled:
            found[key] = row
        if f"{key}.{entry.extension}" in files:
            yield entry, seen.st_mtime
    if read >= _WORTH_WRITING or len(known) >= len(found) + _WORTH_WRITING:
        _save(layout, layout.records, found)


def _names(layout: Layout) -> set[str]:
    """Return the names of all finished files; a private key contains its owner."""
    return {name for directory in _directories(layout) for name in _listdir(directory)}


def _listdir(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, PermissionError):  # only root can list layers
        return []


def _entry(key: str, mark: list[int], row: Any) -> Entry | None:
    """Make an entry from a row that is still valid. There may be tens of thousands."""
    if not isinstance(row, list) or len(row) != len(Entry._fields) + 2 or row[:2] != mark:
        return None
    _, _, of, extension, sha256, size_bytes, architecture, uris, *rest = row
    if not (
        of == key
        and isinstance(extension, str)
        and isinstance(sha256, str)
        and isinstance(size_bytes, int)
        and isinstance(uris, list)
    ):
        return None
    return Entry(key, extension, sha256, size_bytes, architecture, tuple(uris), *rest)


def _load(path: str) -> dict[str, Any]:
    """Return the content; empty if the file is missing, not ours, or invalid."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        if fields["version"] == _VERSION and isinstance(fields["of"], dict):
            return dict(fields["of"])
    return {}


def _save(layout: Layout, path: str, found: dict[str, Any]) -> None:
    text = json.dumps({"version": _VERSION, "of": found}, separators=(",", ":"))
    temp = processes.temp_path(layout.state_tmp, os.path.basename(path))
    # Only root writes and reads it: it contains private images. Others read all records.
    with contextlib.suppress(OSError):
        atomic.write_file(path, text, temp=temp, mode=0o600)
