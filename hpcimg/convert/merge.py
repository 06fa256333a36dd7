"""Merging the layers of an image, highest first, into one sequence of members.

OCI image specification, layer.md, "Applying Changesets". Whatever a lower layer hides is known
before it is read, so each layer is read once, and only what stays is written. This works for nearly
all images; the others are left to `hpcimg.convert.replay` by raising NeedsReplay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from hpcimg.convert import marks
from hpcimg.convert.additions import Additions
from hpcimg.convert.layers import Layer, Reader
from hpcimg.convert.marks import MARK, Mark
from hpcimg.convert.tar import DEVICE, DIRECTORY, LINK, SYMLINK, Member, members
from hpcimg.convert.tree import NeedsReplay, Tree
from hpcimg.convert.writer import Attributes, Budget, Writer

# Called with the number of a layer and how much of it was read.
Progress = Callable[[int, int], None]

_LEFT_OUT = b""  # a device node
# Where the content of a path is: under the name that it was written as, or in the member with this
# number in the current layer.
_Place = bytes | int


def merge(
    writer: Writer, layers: Sequence[Layer], additions: Additions, progress: Progress
) -> None:
    """Write what remains of the layers, lowest first, and the additions.

    Raises HpcimgError, NeedsReplay, and what the receiver raises.
    """
    merging = _Merging(writer, len(layers))
    merging.begin(additions)
    for number in reversed(range(len(layers))):
        merging.lay(layers[number], number, progress)
    merging.end(additions)


class _Merging:
    """The layers applied so far."""

    def __init__(self, writer: Writer, layers: int) -> None:
        self.tree = Tree(layers, writer.uri)
        self.writer = writer
        self.directories: dict[bytes, Attributes] = {}
        self._budget = Budget(writer.uri)

    def begin(self, additions: Additions) -> None:
        """Apply what takes precedence over all layers."""
        for member, content in additions.over:
            if member.kind == DIRECTORY:
                self.tree.take_directory(member.name)
                self.directories[member.name] = Attributes(member.mode, self.writer.now)
            else:
                self.tree.take(member.name)
                self.writer.write_own(member, content, member.name)
        # Paths created at the end may lead through links, too.
        for member, _ in additions.under:
            self.tree.pass_to(member.name)
        for path in additions.directories:
            self.tree.imply(path)
            self.tree.pass_to(path)

    def lay(self, layer: Layer, number: int, progress: Progress) -> None:
        """Apply the next lower layer."""
        self.tree.begin(number)
        run, tell = _Run(self), partial(progress, number)
        with closing(Reader(layer, tell)) as reader:
            for index, member in enumerate(members(reader)):
                self._budget.spend(len(member.name) + len(member.target))
                run.take(index, member, reader)
            reader.check_digest()
        if run.copies:
            with closing(Reader(layer, tell, known=True)) as reader:
                for index, member in enumerate(members(reader)):
                    if index in run.copies:
                        self.writer.write_as(run.copies[index], member, reader)
        run.end()

    def end(self, additions: Additions) -> None:
        """Add what applies below all layers, and all directories.

        A layer may describe a directory after its content.
        """
        for path in additions.directories:
            self.tree.add_missing(path, directory=True)
        for member, content in additions.under:
            is_directory = member.kind == DIRECTORY
            if self.tree.add_missing(member.name, directory=is_directory):
                if is_directory:
                    self.directories[member.name] = Attributes(member.mode, self.writer.now)
                else:
                    self.writer.write_own(member, content, member.name)
        for name in self.tree.directories():
            self.writer.directory(name, self.directories.get(name))


class _Run:
    """One layer while it is read. `copies` are members to be read again, and their names."""

    def __init__(self, merging: _Merging) -> None:
        self.copies: dict[int, list[bytes]] = {}
        self._tree = merging.tree
        self._writer = merging.writer
        self._all_directories = merging.directories
        self._places: dict[bytes, _Place] = {}  # of paths not written under their own name
        self._directories: dict[bytes, Attributes] = {}
        self._gone: set[bytes] = set()
        self._opaque: set[bytes] = set()

    def take(self, index: int, member: Member, reader: Reader) -> None:
        """Write a member if it counts, and remember what it means for others."""
        name, kind = member.name, member.kind
        if not name:
            return  # the root, whose attributes layers do not decide
        if MARK in name and (said := marks.read(name))[0] is not Mark.NONE:
            self._take_mark(*said, index, member)
        elif kind == DIRECTORY:
            if name in self._places:
                raise NeedsReplay
            if self._tree.take_directory(name):
                self._directories[name] = Attributes(member.mode, member.mtime)
        elif kind == LINK:
            self._take_link(member)
        else:
            self._take_other(index, member, reader)

    def end(self) -> None:
        """Make what this layer hides known to lower layers."""
        if self._gone or self._opaque:
            self._tree.check_implied(self._gone, self._opaque)
        for name, attributes in self._directories.items():
            self._all_directories.setdefault(name, attributes)
        for name in sorted(self._opaque, reverse=True):  # a directory after its subdirectories
            self._tree.make_opaque(name)
        for name in self._gone:
            self._tree.white_out(name)

    def _take_mark(self, mark: Mark, path: bytes, index: int, member: Member) -> None:
        if mark is not Mark.AUFS:
            self._tree.pass_to(member.name)
            (self._opaque if mark is Mark.OPAQUE else self._gone).add(path)
        elif member.kind != DIRECTORY:  # aufs stores targets of hard links there
            self._places[member.name] = _LEFT_OUT if member.kind == DEVICE else index

    def _take_other(self, index: int, member: Member, reader: Reader) -> None:
        name = member.name
        if member.kind == SYMLINK:
            self._tree.note_link(name)
        taken = self._tree.take(name)
        if member.kind == DEVICE:
            self._places[name] = _LEFT_OUT
        elif taken:
            self._places.pop(name, None)
            self._writer.write(member, reader)
        else:
            self._places[name] = index

    def _take_link(self, member: Member) -> None:
        name, target = member.name, member.target
        if name == target or target.startswith(name + b"/"):
            raise NeedsReplay
        place = self._places.get(target)
        if place is None:
            if not self._tree.taken_here(target):
                raise NeedsReplay  # it is in a lower layer, has another name, or does not exist
            place = target
        if self._tree.is_link(target):
            self._tree.note_link(name)
        taken = self._tree.take(name)
        self._places[name] = place
        if taken and isinstance(place, int):
            self.copies.setdefault(place, []).append(name)
        elif taken and place != _LEFT_OUT:
            assert isinstance(place, bytes)
            self._writer.link([name], place, member)
