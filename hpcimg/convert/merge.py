"""Merging the layers of an image, highest first, into one row of members.

OCI image specification, layer.md, "Applying Changesets". What lies lower is
known to be hidden before it is read, so that it is never written; what is left
are hard links whose target is hidden while they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple, NoReturn

from hpcimg.convert import sparse
from hpcimg.convert.layers import Layer, Reader
from hpcimg.convert.receiver import Receiver
from hpcimg.convert.tar import DEVICE, DIRECTORY, FILE, LINK, Member, members, shown  # fmt: skip
from hpcimg.convert.tree import Repeated, Tree
from hpcimg.errors import NotAnImage, TooLarge

_MARK = b".wh."
_OPAQUE = b".wh..wh..opq"
# About 2 GiB of memory, and many times what real images have.
_MOST_MEMBERS = 10_000_000
_MOST_NAME_BYTES = 1 << 30

Progress = Callable[[int], None]


class _Lower(NamedTuple):
    """The target of a hard link is in a lower layer, under this name."""

    name: bytes


_LEFT_OUT = _Lower(b"")  # it is a device
# Where the content of a path is: written under this name, the member of this number in
# the layer at hand, or in a lower layer.
_Place = bytes | int | _Lower


class Limits(NamedTuple):
    """How much may come of an image; 0 is no limit."""

    uri: str
    content_bytes: int


class _Budget:
    """What has to be remembered of an image's members may not fill the memory."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._members = self._bytes = 0

    def spend(self, member: Member) -> None:
        """Count a member. Raises NotAnImage."""
        self._members += 1
        self._bytes += len(member.name) + len(member.target)
        if self._members > _MOST_MEMBERS or self._bytes > _MOST_NAME_BYTES:
            raise NotAnImage(
                f"{self._uri} cannot be converted",
                why=f"its layers hold more than {_MOST_MEMBERS} files, or too long names",
                do="Use an image with fewer files.",
            )


class Merge:
    """The layers laid so far. `tree` and `directories` say what the image holds.

    `careful` reads each layer twice, and so allows for paths that come twice in
    one; without that, they raise Repeated.
    """

    def __init__(self, tree: Tree, receiver: Receiver, limits: Limits, *, careful: bool) -> None:
        self.tree = tree
        # Attributes of directories: mode and time of modification.
        self.directories: dict[bytes, tuple[int, int]] = {}
        self._receiver = receiver
        self._limits = limits
        self._careful = careful
        self._budget = _Budget(limits.uri)
        # Hard links that wait for their target in a lower layer.
        self._wanted: dict[bytes, list[bytes]] = {}
        self._above_wanted: set[bytes] = set()

    def lay(self, layer: Layer, number: int, progress: Progress) -> None:
        """Lay the next lower layer under those before. Raises HpcimgError, Repeated."""
        self.tree.begin(number)
        void = _find_void(layer, progress, self._limits.uri) if self._careful else frozenset()
        run = _Run(self, layer, void)
        with closing(Reader(layer, progress)) as reader:
            for index, member in enumerate(members(reader)):
                self._budget.spend(member)
                run.take(index, member, reader)
        if run.copies:
            with closing(Reader(layer, progress)) as reader:
                for index, member in enumerate(members(reader)):
                    if index in run.copies:
                        self.write(run.copies[index], member, reader)
        run.end()

    def end(self) -> None:
        """Raise NotAnImage where hard links wait in vain."""
        for target, names in self._wanted.items():
            self.dangling(names[0], target)

    def write(self, names: list[bytes], member: Member, reader: Reader) -> None:
        """Write a member under the first name, and the others as hard links to that."""
        first, *others = names
        if member.kind == FILE:
            limit = self._limits.content_bytes
            if limit and self._receiver.content_bytes + member.size > limit:
                raise TooLarge(
                    f"{self._limits.uri} is too large",
                    why=f"its files are more than {limit} bytes",
                )
            if member.segments is None:
                content = reader.copy(member.size)
            else:
                content = sparse.content(member.segments, member.size, reader)
        else:
            content = iter(())
        self._receiver.add(
            member.kind, first, mode=member.mode, mtime=member.mtime, size=member.size,
            target=member.target, content=content,
        )  # fmt: skip
        self.link(others, first, member)

    def link(self, names: list[bytes], target: bytes, member: Member) -> None:
        """Write hard links to what was written."""
        for name in names:
            self._receiver.add(LINK, name, mode=member.mode, mtime=member.mtime, target=target)

    def want(self, target: bytes, names: list[bytes]) -> None:
        """Let hard links wait for their target in the layers below this one."""
        self._wanted.setdefault(target, []).extend(names)
        self._above_wanted |= set(_above(target))

    def wanted(self, name: bytes, kind: int) -> list[bytes]:
        """Return the links that wait for a member. Raises NotAnImage if it makes them dangle."""
        if not self._wanted:
            return []
        blocked = [path for path in _above(name) if path in self._wanted]
        if kind == DIRECTORY:
            blocked += [name] if name in self._wanted else []
        elif name in self._above_wanted:
            blocked += [path for path in self._wanted if path.startswith(name + b"/")]
        for path in blocked:
            self.dangling(self._wanted[path][0], path)
        return self._wanted.pop(name, [])

    def hide_wanted(self, gone: set[bytes], opaque: set[bytes]) -> None:
        """Raise NotAnImage where a whiteout hides what hard links of higher layers wait for."""
        for target, names in self._wanted.items():
            above = set(_above(target))
            if target in gone or above & gone or (above | {b""}) & opaque:
                self.dangling(names[0], target)

    def dangling(self, name: bytes, target: bytes) -> NoReturn:
        """Refuse a hard link to nothing, as other tools do."""
        if not self._careful:
            raise Repeated  # it may be there after all, if what hides it is void
        raise NotAnImage(
            f"{self._limits.uri} cannot be converted",
            why=f"{shown(name)} is a hard link to {shown(target)}, which is not there",
            do="Build the image again, or use another one.",
        )


class _Run:
    """One layer while it is read. `copies`: what has to be read once more, and its names."""

    def __init__(self, merge: Merge, layer: Layer, void: frozenset[int]) -> None:
        self.copies: dict[int, list[bytes]] = {}
        self._merge = merge
        self._tree = merge.tree
        self._layer = layer
        self._void = void
        self._places: dict[bytes, _Place] = {}  # of what was not written under its own name
        self._served: set[bytes] = set()
        self._directories: dict[bytes, tuple[int, int]] = {}
        self._gone: set[bytes] = set()
        self._replaced: set[bytes] = set()
        self._opaque: set[bytes] = set()
        self._waiting: dict[bytes, list[bytes]] = {}

    def take(self, index: int, member: Member, reader: Reader) -> None:
        """Write a member where it counts, and remember what it means for others."""
        name, kind = member.name, member.kind
        if not name:
            return  # the root, whose attributes mksquashfs does not take from here
        void = index in self._void
        place: _Place = _LEFT_OUT if kind == DEVICE else index
        if _MARK in name and self._is_mark(name, void):
            if kind != DIRECTORY:
                self._places[name] = place  # aufs keeps the targets of hard links so
        elif kind == DIRECTORY:
            if not void:
                self._merge.wanted(name, kind)
                if self._tree.take_directory(name):
                    self._directories[name] = member.mode, member.mtime
        elif kind == LINK:
            self._take_link(member, void)
        elif void:
            self._void_other(name, place)
        else:
            self._take_other(index, member, reader)

    def end(self) -> None:
        """Make known to lower layers what this one hides."""
        merge = self._merge
        for name, attributes in self._directories.items():
            merge.directories.setdefault(name, attributes)
        for name in sorted(self._opaque, reverse=True):  # a directory after those in it
            self._tree.make_opaque(name)
        for name in self._gone | self._replaced:
            self._tree.white_out(name)
        for target, names in self._waiting.items():
            merge.want(target, names)
        merge.hide_wanted(self._gone, self._opaque)

    def _take_other(self, index: int, member: Member, reader: Reader) -> None:
        name = member.name
        if name in self._served:
            raise Repeated
        names = self._merge.wanted(name, member.kind)
        if names:
            self._served.add(name)
        if self._tree.take(name):
            self._places.pop(name, None)
            names.insert(0, name)
        else:
            self._places[name] = names[0] if names else index
        if member.kind == DEVICE:
            self._places[name] = _LEFT_OUT
        elif names:
            self._merge.write(names, member, reader)

    def _take_link(self, member: Member, void: bool) -> None:
        name, target = member.name, member.target
        place: _Place | None = self._places.get(target)
        if place is None:
            place = target if self._tree.taken_here(target) else _Lower(target)
        if void:
            self._void_other(name, place)
            return
        if name in self._served:
            raise Repeated
        names = self._merge.wanted(name, LINK)
        if names:
            self._served.add(name)
        if self._tree.take(name):
            names.insert(0, name)
        self._places[name] = place
        if isinstance(place, bytes):
            self._merge.link(names, place, member)
        elif isinstance(place, int):
            if names:
                self.copies.setdefault(place, []).extend(names)
        elif place is not _LEFT_OUT and names:
            self._waiting.setdefault(place.name, []).extend(names)

    def _void_other(self, name: bytes, place: _Place) -> None:
        self._places[name] = place
        # What came later may be a directory, and has nothing of those in lower layers.
        self._replaced.add(name)

    def _is_mark(self, name: bytes, void: bool) -> bool:
        """Take note of a whiteout. True for all names that are none of the image's files."""
        kind, path = read_mark(name)
        if not void:
            if kind == _OPAQUE:
                self._opaque.add(path)
            elif kind == _MARK:
                self._gone.add(path)
        return bool(kind)


def read_mark(name: bytes) -> tuple[bytes, bytes]:
    """Return what kind of mark a name is, "" for none, and the path that it is about.

    What is below or beside a mark in aufs' own names is of another kind, `.wh..wh.`.
    """
    directory, slash, last = name.rpartition(b"/")
    if _MARK in directory and (directory.startswith(_MARK) or b"/" + _MARK in directory):
        return b".wh..wh.", b""
    if last == _OPAQUE:
        return _OPAQUE, directory
    if not last.startswith(_MARK):
        return b"", b""
    hidden = last[len(_MARK) :]
    if hidden.startswith(_MARK) or hidden in (b"", b".", b".."):
        return b".wh..wh.", b""
    return _MARK, directory + slash + hidden


def _find_void(layer: Layer, progress: Progress, uri: str) -> frozenset[int]:
    """Return the numbers of the members that later ones of the same layer replace."""
    found: list[tuple[bytes, bool]] = []
    budget = _Budget(uri)
    with closing(Reader(layer, progress)) as reader:
        for member in members(reader):
            budget.spend(member)
            kind, path = read_mark(member.name)
            name, is_directory = member.name, member.kind == DIRECTORY
            if kind == _OPAQUE:
                name, is_directory = path, True
            elif kind:
                name = b""
            found.append((name, is_directory))
    # The last counts: from the end, each is as a layer below those behind it.
    tree = Tree(len(found), uri)
    void = set()
    for index in reversed(range(len(found))):
        name, is_directory = found[index]
        if name:
            tree.begin(index)
            if not (tree.take_directory(name) if is_directory else tree.take(name)):
                void.add(index)
    return frozenset(void)


def _above(name: bytes) -> Iterator[bytes]:
    """Yield the directories that a path is in, but the root."""
    while (slash := name.rfind(b"/")) > 0:
        name = name[:slash]
        yield name
