"""Merging layers as if they were unpacked on top of each other, in a tree in memory.

This is for images that `hpcimg.convert.merge` cannot handle: with paths through symbolic links, the
same path twice, or hard links to files of lower layers. All layers are read to find out what stays,
and then again to write it. Links are followed as in umoci and podman's vfs, and never out of the
root: nothing is looked up on a real file system. docs/converted-images.md has the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import NamedTuple, TypeVar

from hpcimg.convert import marks
from hpcimg.convert.additions import Additions
from hpcimg.convert.layers import Layer, Reader
from hpcimg.convert.marks import Mark
from hpcimg.convert.merge import Progress
from hpcimg.convert.tar import (
    DEVICE,
    DIRECTORY,
    LINK,
    MAX_COMPONENT_BYTES,
    MAX_PATH_BYTES,
    SYMLINK,
    Member,
    members,
    shown,
)
from hpcimg.convert.writer import Attributes, Budget, Writer
from hpcimg.errors import NotAnImage

_MOST_LINKS = 255  # per path; the kernel allows 40, umoci 255


class _Leaf(NamedTuple):
    """Anything but a directory: the member with this number in a layer. Hard links share one."""

    layer: int
    number: int
    kind: int
    target: bytes


class _Directory:
    """A directory, with its attributes from a layer."""

    __slots__ = ("children", "told")

    def __init__(self) -> None:
        self.children: dict[bytes, _Directory | _Leaf] = {}
        self.told: Attributes | None = None


_Node = _Directory | _Leaf
_New = TypeVar("_New", _Directory, _Leaf)
_Way = list[tuple[bytes, _Node | None]]  # names from the root, None where nothing exists yet


class _Astray(Exception):
    """A path leads through too many links, or is too long; the message says why."""


def replay(
    writer: Writer, layers: Sequence[Layer], additions: Additions, progress: Progress
) -> None:
    """Write what remains of the layers, lowest first, and the additions.

    Raises HpcimgError, and what the receiver raises.
    """
    tree = _Tree(writer.uri)
    for number, layer in enumerate(layers):
        tree.begin(number)
        with closing(Reader(layer, lambda _read: None)) as reader:
            for index, member in enumerate(members(reader)):
                try:
                    tree.apply(index, member)
                except _Astray as astray:
                    raise layer.refused(f"{shown(member.name)} in it {astray}") from None
            reader.check_digest()
    tree.begin(len(layers))
    tree.add(additions, writer.now)
    directories, names = tree.plan(len(layers) + 1)
    for number in reversed(range(len(layers))):
        wanted = names[number]
        tell = partial(progress, number)
        with closing(Reader(layers[number], tell, known=True)) as reader:
            for index, member in enumerate(members(reader)):
                if index in wanted:
                    writer.write_as(wanted[index], member, reader)
    own = (*additions.over, *additions.under)
    for index, (name, *_) in names[len(layers)].items():
        writer.write_own(*own[index], name)
    for name, told in directories:
        writer.directory(name, told)


class _Tree:
    """The files of an image after the layers applied so far."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._root = _Directory()
        self._budget = Budget(uri)
        self.begin(0)

    def begin(self, layer: int) -> None:
        """Continue with the next higher layer."""
        self._layer = layer
        # Paths created by this layer, and their parents: its whiteouts do not apply to them.
        self._touched: set[bytes] = set()
        self._aufs: dict[bytes, _Leaf] = {}
        # Cache of where directory names lead, until that may have changed.
        self._known: dict[bytes, tuple[bytes, _Directory]] = {}

    def apply(self, index: int, member: Member) -> None:
        """Do what unpacking a member would do. Raises NotAnImage, _Astray."""
        self._budget.spend(len(member.name) + len(member.target))
        if not member.name:
            return  # the root, whose attributes layers do not decide
        mark, path = marks.read(member.name)
        leaf = _Leaf(self._layer, index, member.kind, member.target)
        if mark is Mark.AUFS:
            if member.kind != DIRECTORY:
                self._aufs[member.name] = leaf
        elif mark is Mark.OPAQUE:
            way = self._resolve(path)
            directory = way[-1][1] if way else self._root
            if isinstance(directory, _Directory):
                self._sweep(b"/".join(part for part, _ in way), directory)
        elif mark is Mark.WHITEOUT:
            self._white_out(path)
        elif member.kind == DIRECTORY:
            self._put_directory(member.name, Attributes(member.mode, member.mtime))
        elif member.kind == LINK:
            self._put_link(member.name, member.target)
        else:
            self._put(member.name, leaf)

    def add(self, additions: Additions, now: int) -> None:
        """Add what is in no layer, unless its path leads nowhere."""
        over = len(additions.over)
        for index, (member, _) in enumerate((*additions.over, *additions.under)):
            if index == over:
                for path in additions.directories:
                    self._add_directory(path)
            with suppress(_Astray):
                if index >= over and not self._is_free(member.name):
                    continue
                if member.kind == DIRECTORY:
                    self._put_directory(member.name, Attributes(member.mode, now))
                else:
                    self._put(member.name, _Leaf(self._layer, index, member.kind, member.target))

    def plan(
        self, layers: int
    ) -> tuple[list[tuple[bytes, Attributes | None]], list[dict[int, list[bytes]]]]:
        """Return all directories, and for each layer the members that stay, by their names."""
        directories: list[tuple[bytes, Attributes | None]] = []
        names: list[dict[int, list[bytes]]] = [{} for _ in range(layers)]
        for path, node in self._walk():
            if isinstance(node, _Directory):
                directories.append((path, node.told))
            elif node.kind != DEVICE:
                names[node.layer].setdefault(node.number, []).append(path)
        return directories, names

    def _put_directory(self, name: bytes, told: Attributes) -> None:
        above, last, path = self._place(name)
        node = above.children.get(last)
        if not isinstance(node, _Directory):
            node = self._set(above, last, _Directory())
        node.told = told
        self._touch(path)

    def _put(self, name: bytes, leaf: _Leaf) -> None:
        above, last, path = self._place(name)
        self._set(above, last, leaf)
        self._touch(path)

    def _put_link(self, name: bytes, target: bytes) -> None:
        hidden = self._aufs.get(target)
        leaf = hidden or self._look_up(target)
        above, last, path = self._place(name)
        if above.children.pop(last, None):  # it may have been the target, or on the way to it
            self._known.clear()
        if not isinstance(leaf, _Leaf) or not (hidden or self._look_up(target)):
            raise NotAnImage(
                f"{self._uri} cannot be converted",
                why=f"{shown(name)} is a hard link to {shown(target)}, which does not exist",
                do="Build the image again, or use another one.",
            )
        self._set(above, last, leaf)
        self._touch(path)

    def _add_directory(self, path: bytes) -> None:
        with suppress(_Astray):
            way = self._resolve(path)
            if not any(isinstance(node, _Leaf) for _, node in way):
                self._make(way)

    def _is_free(self, name: bytes) -> bool:
        """Tell whether the path is free: nothing exists there, and no file is on the way."""
        above, _ = _split(name)
        blocked = any(isinstance(node, _Leaf) for _, node in self._resolve(above))
        return not blocked and self._look_up(name) is None

    def _white_out(self, path: bytes) -> None:
        """Remove what lower layers have there, without creating anything on the way."""
        directory, last = _split(path)
        way = self._resolve(directory)
        above = way[-1][1] if way else self._root
        node = above.children.get(last) if isinstance(above, _Directory) else None
        if not isinstance(above, _Directory) or node is None:
            return
        name = b"/".join([*(part for part, _ in way), last])
        if name not in self._touched:
            del above.children[last]
            self._known.clear()
        elif isinstance(node, _Directory):
            self._sweep(name, node)

    def _sweep(self, name: bytes, directory: _Directory) -> None:
        """Remove what lower layers have in a directory."""
        waiting = [(name, directory)]
        while waiting:
            name, directory = waiting.pop()
            for last, node in list(directory.children.items()):
                path = name + b"/" + last if name else last
                if path not in self._touched:
                    del directory.children[last]
                elif isinstance(node, _Directory):
                    waiting.append((path, node))
        self._known.clear()

    def _set(self, above: _Directory, last: bytes, node: _New) -> _New:
        """Put something into a directory, replacing what is there."""
        old = above.children.get(last)
        if isinstance(old, _Directory) or (old and old.kind == SYMLINK):
            self._known.clear()
        above.children[last] = node
        return node

    def _touch(self, path: bytes) -> None:
        while path and path not in self._touched:
            self._touched.add(path)
            path = path[: max(0, path.rfind(b"/"))]

    def _place(self, name: bytes) -> tuple[_Directory, bytes, bytes]:
        """Return the parent of a name, created if necessary, its last component, and its path."""
        directory, last = _split(name)
        path, above = self._enter(directory)
        path = path + b"/" + last if path else last
        self._budget.spend(len(path), names=0)  # links turn short names into long paths
        if len(path) > MAX_PATH_BYTES:
            raise _Astray("leads to a path that is too long")
        return above, last, path

    def _enter(self, name: bytes) -> tuple[bytes, _Directory]:
        """Return where a directory's name leads, and the directory, created if necessary."""
        if name not in self._known:
            self._known[name] = self._make(self._resolve(name))
        return self._known[name]

    def _make(self, way: _Way) -> tuple[bytes, _Directory]:
        """Create what is missing on a path, replacing anything that is not a directory."""
        directory = self._root
        for part, node in way:
            if not isinstance(node, _Directory):
                if len(part) > MAX_COMPONENT_BYTES:
                    raise _Astray("leads to a name that is too long")
                self._budget.spend(len(part))
                node = self._set(directory, part, _Directory())
            directory = node
        return b"/".join(part for part, _ in way), directory

    def _look_up(self, name: bytes) -> _Node | None:
        """Return what has this name, without following it if it is a link."""
        directory, last = _split(name)
        way = self._resolve(directory)
        above = way[-1][1] if way else self._root
        return above.children.get(last) if isinstance(above, _Directory) else None

    def _resolve(self, name: bytes) -> _Way:
        """Return the path to a directory, all links followed, within the root.

        What does not exist is not a link, and `..` after it leads back.
        """
        way: _Way = []
        todo = name.split(b"/")[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                del way[-1:]
                continue
            above = way[-1][1] if way else self._root
            node = above.children.get(part) if isinstance(above, _Directory) else None
            if isinstance(node, _Leaf) and node.kind == SYMLINK:
                links += 1
                if links > _MOST_LINKS:
                    raise _Astray(f"leads through more than {_MOST_LINKS} symbolic links")
                if node.target.startswith(b"/"):
                    way.clear()
                todo += node.target.split(b"/")[::-1]
            else:
                way.append((part, node))
        return way

    def _walk(self) -> Iterator[tuple[bytes, _Node]]:
        """Yield everything in the tree, with its path."""
        waiting = [(b"", self._root)]
        while waiting:
            name, directory = waiting.pop()
            for last, node in directory.children.items():
                path = name + b"/" + last if name else last
                yield path, node
                if isinstance(node, _Directory):
                    waiting.append((path, node))


def _split(name: bytes) -> tuple[bytes, bytes]:
    directory, _, last = name.rpartition(b"/")
    return directory, last
