"""Random layers beside what umoci unpacks of them, entry by entry.

What differs on purpose, as docs/converted-images.md says it:

- Devices are left out; all belongs to root; extended attributes and the root's mode are left out.
- A file that is on the way to something gives way to a directory. umoci 0.4 refuses such an image,
  and 0.6 gives the directory the mode and the time of the file.
- A directory keeps the time that a layer says of it. With umoci it may be that of the unpacking,
  where a directory was made in it on the way to something.
- A directory that no layer tells of has the mode 0755. With umoci it is also setgid where the one
  it is in is.

`make test-peers` does this for thousands of stacks. A stack is made again by its number.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

import pytest

from hpcimg.convert.replay import replay
from hpcimg.errors import HpcimgError
from tests.parts import trees, umoci
from tests.parts.merging import archive_of, unpack_into
from tests.parts.stacks import Stack, make_stack
from tests.parts.trees import Entry, Tree

STACKS = int(os.environ.get("HPCIMG_PEERS", "300"))
AT_ONCE = 100
# Whether umoci gives a directory the mode and the time of the file whose place it takes.
DIRECTORY_AS_FILE = not umoci.missing() and umoci.version() >= (0, 5)
NOW = -1  # in the place of the time of a directory that no layer tells of

pytestmark = [
    pytest.mark.skipif(bool(umoci.missing()), reason=umoci.missing() or "-"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as umoci makes devices"),
]


@pytest.mark.parametrize("first", range(0, STACKS, AT_ONCE))
def test_random_layers(first: int) -> None:
    compared, wrong = 0, []
    for number in range(first, first + AT_ONCE):
        stack = make_stack(number)
        with tempfile.TemporaryDirectory() as directory:
            found = differences(stack, Path(directory))
        if found:
            wrong.append("\n".join([f"stack {number}:", stack.about, *found]))
        compared += found is not None
    assert not wrong, "\n\n".join(wrong)
    assert compared > AT_ONCE / 3, "most of what is made up is taken by nobody"


def differences(stack: Stack, directory: Path) -> list[str] | None:
    """Return how the results of two tools differ, None if there is nothing to compare."""
    begin = int(time.time())
    try:
        data = archive_of(stack.layers)
    except HpcimgError as error:
        return refused_by_umoci(stack, directory, f"hpcimg alone refuses it: {error}")
    by_umoci = directory / "umoci"
    by_umoci.mkdir()
    try:
        theirs = trees.in_directory(umoci.unpack(by_umoci, stack.layers, stack.archives))
    except umoci.Refused as error:
        return None if "not a directory" in str(error) else [f"umoci alone refuses it: {error}"]
    theirs = comparable(theirs, begin)
    ours = comparable(trees.in_archive(data), begin)
    replayed = comparable(trees.in_archive(archive_of(stack.layers, ways=[replay])), begin)
    assert ours == replayed, stack.about
    by_directory = directory / "unpacked"
    by_directory.mkdir()
    pseudo = unpack_into(by_directory, stack.layers)
    unpacked = comparable(restored(trees.in_directory(by_directory), pseudo), begin)
    assert unpacked == {
        path: as_unpacked(path, entry, unpacked.get(path, entry)) for path, entry in ours.items()
    }, stack.about
    return [
        f"{path!r}: {ours.get(path)}, and with umoci {theirs.get(path)}"
        for path in sorted({*ours, *theirs})
        if not same(ours.get(path), theirs.get(path))
    ]


def refused_by_umoci(stack: Stack, directory: Path, otherwise: str) -> list[str] | None:
    try:
        umoci.unpack(directory, stack.layers, stack.archives)
    except umoci.Refused:
        return None
    return [otherwise]


def comparable(tree: Tree, begin: int) -> Tree:
    """Return what is to be the same, if it was not made before a time."""
    return {
        path: entry._replace(mtime=NOW) if entry.mtime >= begin else entry
        for path, entry in tree.items()
        if entry.kind != "c"
    }


def same(ours: Entry | None, theirs: Entry | None) -> bool:
    if ours and theirs and ours.kind == theirs.kind == "d":
        if ours.mtime == NOW and DIRECTORY_AS_FILE:
            return ours == theirs._replace(mode=0o755, mtime=NOW)
        setgid = theirs.mode & 0o2000 if ours.mtime == NOW else 0
        mtime = ours.mtime if theirs.mtime == NOW else theirs.mtime
        return ours == theirs._replace(mode=theirs.mode & ~setgid, mtime=mtime)
    return ours == theirs


def restored(tree: Tree, pseudo: bytes) -> Tree:
    """Return what mksquashfs makes of a directory with the modes in a pseudo file."""
    for line in pseudo.splitlines():
        name, _, mode = line.rpartition(b" 0 0")[0].rpartition(b" m ")
        path = os.fsdecode(re.sub(rb"\\(.)", rb"\1", name, flags=re.DOTALL))
        for each in tree[path].names or (path,):
            tree[each] = tree[each]._replace(mode=int(mode, 8))
    return tree


def as_unpacked(path: str, entry: Entry, found: Entry) -> Entry:
    """Return what is left of a file with a mode that no pseudo file can say."""
    more = {"f": 0o400, "d": 0o700}.get(entry.kind, 0)
    if any("\n" in name for name in entry.names or [path]) and found.mode == entry.mode | more:
        return entry._replace(mode=found.mode)
    return entry
