"""Merging layers: what the OCI image specification says of whiteouts, links and order."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hpcimg.convert.layers import Layer
from hpcimg.convert.merge import Limits, Merge
from hpcimg.convert.receiver import Receiver
from hpcimg.convert.stream import Stream
from hpcimg.convert.tar import DIRECTORY
from hpcimg.convert.tree import Repeated, Tree
from hpcimg.convert.unpack import Directory
from hpcimg.errors import HpcimgError, NotAnImage, TooLarge
from tests.parts.layers import (
    TIME,
    directory,
    file,
    link,
    opaque,
    opened,
    special,
    symlink,
    tar,
    whiteout,
)  # fmt: skip

Entry = tuple[tarfile.TarInfo, bytes]
Merged = dict[str, str]


def merged(*layers: Sequence[Entry], limit: int = 0) -> Merged:
    """Return what an image of these layers holds, the lowest first; directories end with /."""
    for careful in (False, True):
        with contextlib.suppress(Repeated), open(os.memfd_create("merged"), "w+b") as output:
            stream = Stream(output.fileno())
            directories = merge_into(stream, layers, limit, careful=careful)
            stream.end()
            output.seek(0)
            return {**directories, **read(output)}
    raise AssertionError("even with care it came twice")


def merge_into(
    receiver: Receiver, layers: Sequence[Sequence[Entry]], limit: int, *, careful: bool
) -> Merged:
    tree = Tree(len(layers), "docker://x")
    merge = Merge(tree, receiver, Limits("docker://x", limit), careful=careful)
    with opened(*(tar(*entries) for entries in layers)) as descriptors:
        for number in reversed(range(len(layers))):
            descriptor = descriptors[number]
            given_layer = Layer(descriptor, os.fstat(descriptor).st_size, f"layer {number + 1}")
            merge.lay(given_layer, number, lambda _read: None)
    merge.end()
    modes = {name: attributes[0] for name, attributes in merge.directories.items()}
    return {f"{name.decode()}/": f"{modes.get(name, 0o755):o}" for name in tree.directories()}


def read(stream: object) -> Merged:
    """Return what is in a stream, every path once, no link before its target."""
    found: Merged = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            assert member.name not in found
            if member.isreg():
                content = archive.extractfile(member)
                assert content
                found[member.name] = content.read().decode()
            elif member.islnk():
                found[member.name] = found[member.linkname]
            else:
                assert member.issym() or member.isfifo()
                found[member.name] = f"-> {member.linkname}"
    return found


def unpacked_by_directory(layers: Sequence[Sequence[Entry]]) -> Merged:
    """Return what a directory holds of these layers, with the modes that are in the pseudo file."""
    for careful in (False, True):
        with contextlib.suppress(Repeated), tempfile.TemporaryDirectory() as path:
            pseudo = io.BytesIO()
            with contextlib.closing(Directory(path, pseudo, uri="docker://x")) as receiver:
                directories = merge_into(receiver, layers, 0, careful=careful)
                for name, mode in directories.items():
                    receiver.add(DIRECTORY, name[:-1].encode(), mode=int(mode, 8), mtime=TIME)
                receiver.end()
            restored = dict(line.split(" m ") for line in pseudo.getvalue().decode().splitlines())
            return {
                name: f"{int(restored[name[:-1]].split()[0], 8):o}"
                if name[:-1] in restored
                else content
                for name, content in on_disk(Path(path))
            }
    raise AssertionError("even with care it came twice")


def on_disk(top: Path) -> Iterator[tuple[str, str]]:
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        if path.is_dir():
            assert path.stat().st_mtime == TIME
            yield f"{name}/", f"{stat.S_IMODE(path.stat().st_mode):o}"
        else:
            yield name, path.read_text()


# What follows what, by hand


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([[file("a", b"1")], [file("a", b"2")]], {"a": "2"}, id="the higher wins"),
        pytest.param([[file("a", b"1"), file("b")], [whiteout("a")]], {"b": ""}, id="whiteout"),
        pytest.param(
            [[file("d/a"), file("e/a")], [whiteout("d")]],
            {"e/": "755", "e/a": ""},
            id="whiteout of a directory",
        ),
        pytest.param(
            [[file("d/a", b"1")], [whiteout("d/a"), file("d/a", b"2")]],
            {"d/": "755", "d/a": "2"},
            id="a whiteout spares its own layer",
        ),
        pytest.param(
            [[file("d/a")], [whiteout("d")], [file("d/b")]],
            {"d/": "755", "d/b": ""},
            id="a directory made again",
        ),
        pytest.param(
            [[directory("d", mode=0o700), file("d/a")], [file("d/b"), opaque("d")]],
            {"d/": "700", "d/b": ""},
            id="opaque",
        ),
        pytest.param(
            [[file("a"), file("d/a")], [opaque(""), file("b")]], {"b": ""}, id="an opaque root"
        ),
        pytest.param([[file("d/a")], [file("d", b"2")]], {"d": "2"}, id="a file for a directory"),
        pytest.param(
            [[file("d", b"1")], [file("d/a")]],
            {"d/": "755", "d/a": ""},
            id="a directory for a file",
        ),
        pytest.param(
            [[file("d/a")], [file("d")], [file("d/b")]],
            {"d/": "755", "d/b": ""},
            id="a directory for a file for a directory",
        ),
        pytest.param(
            [[directory("d", mode=0o700)], [file("d/a")], [directory("d", mode=0o711)]],
            {"d/": "711", "d/a": ""},
            id="attributes of the highest that has any",
        ),
        pytest.param(
            [[file("d/a"), directory("d", mode=0o700), directory("d", mode=0o711)]],
            {"d/": "711", "d/a": ""},
            id="a directory after what is in it, and twice",
        ),
        pytest.param(
            [[symlink("lib", "usr/lib"), file("usr/lib/x")], [file("lib/y")]],
            {"lib/": "755", "lib/y": "", "usr/": "755", "usr/lib/": "755", "usr/lib/x": ""},
            id="symbolic links are not followed",
        ),
        pytest.param(
            [[special("null", tarfile.CHRTYPE), special("p", tarfile.FIFOTYPE), file("a")],
             [special("a", tarfile.BLKTYPE), link("b", "a")]],
            {"p": "-> "},
            id="devices are left out, and hide",
        ),
        pytest.param(
            [[file(".wh..wh.aufs"), file(".wh..wh.plnk/1.2", b"x"), file(".wh."), file(".wh..."),
              link("a", ".wh..wh.plnk/1.2")]],
            {"a": "x"},
            id="aufs",
        ),
        pytest.param([[file("x.wh.y", b"1")]], {"x.wh.y": "1"}, id="no mark"),
    ],
)  # fmt: skip
def test_layers(layers: list[list[Entry]], expected: Merged) -> None:
    assert merged(*layers) == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param(
            [[file("a", b"1"), link("b", "a"), link("c", "/b")]],
            {"a": "1", "b": "1", "c": "1"},
            id="in the layer",
        ),
        pytest.param(
            [[file("a", b"1"), link("b", "a"), link("c", "b")], [whiteout("a")]],
            {"b": "1", "c": "1"},
            id="the target is hidden",
        ),
        pytest.param(
            [[file("a", b"1"), link("b", "a")], [file("a", b"2")]],
            {"a": "2", "b": "1"},
            id="the target is superseded",
        ),
        pytest.param([[file("a", b"1")], [link("b", "a")]], {"a": "1", "b": "1"}, id="below"),
        pytest.param(
            [[file("a", b"1")], [link("b", "a"), link("c", "b")], [file("a", b"2")]],
            {"a": "2", "b": "1", "c": "1"},
            id="below and superseded",
        ),
        pytest.param(
            [[file("a", b"1"), link("b", "a")], [link("c", "b")], [whiteout("b"), whiteout("a")]],
            {"c": "1"},
            id="to a link below, all hidden",
        ),
        pytest.param(
            [[file("a", b"1"), link("b", "a"), file("a", b"2"), link("c", "a")]],
            {"a": "2", "b": "1", "c": "2"},
            id="the target is replaced in the layer",
        ),
        pytest.param(
            [[symlink("a", "x"), link("b", "a")]], {"a": "-> x", "b": "-> x"}, id="to a symlink"
        ),
    ],
)
def test_hard_links(layers: list[list[Entry]], expected: Merged) -> None:
    assert merged(*layers) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([file("a", b"1"), file("a", b"2")], {"a": "2"}),
        ([file("d/a"), file("d", b"2")], {"d": "2"}),
        ([file("d", b"2"), file("d/a")], {"d/": "755", "d/a": ""}),
        ([directory("d"), file("d/a"), file("d"), file("d/b")], {"d/": "755", "d/b": ""}),
    ],
)
def test_what_comes_twice_in_a_layer_counts_as_it_came_last(
    members: list[Entry], expected: Merged
) -> None:
    assert merged(members) == expected
    # ... with layers on both sides, which know nothing of it.
    assert merged([file("x")], members, [file("y")]) == {**expected, "x": "", "y": ""}


@pytest.mark.parametrize(
    "layers",
    [
        [[link("b", "a")]],
        [[link("b", "a"), file("a")]],
        [[directory("a")], [link("b", "a")]],
        [[file("a")], [whiteout("a")], [link("b", "a")]],
        [[file("d/a")], [opaque("d")], [link("b", "d/a")]],
        [[file("d/a")], [file("d")], [link("b", "d/a")]],
        [[file("a")], [whiteout("a"), link("b", "a")]],
    ],
)
def test_a_hard_link_to_nothing_is_refused(layers: list[list[Entry]]) -> None:
    with pytest.raises(NotAnImage, match=r"b is a hard link to (d/)?a, which is not there"):
        merged(*layers)


def test_too_large() -> None:
    layers = [[file("a", bytes(600))], [file("b", bytes(600)), whiteout("c")]]
    assert merged(*layers, limit=1200)
    with pytest.raises(TooLarge, match="more than 1199 bytes"):
        merged(*layers, limit=1199)


# Against a model that unpacks from the lowest layer on, as other tools do


class Node(NamedTuple):
    """A file of the model, or a directory with its mode."""

    content: str
    is_directory: bool = False


class Dangling(Exception):
    pass


def unpacked(layers: Sequence[Sequence[Entry]]) -> Merged:
    tree: dict[str, Node] = {}
    for entries in layers:
        for member, _ in entries:
            head, slash, last = member.name.rpartition("/")
            if last == ".wh..wh..opq":
                remove(tree, head + slash, below=True)
            elif last.startswith(".wh."):
                remove(tree, head + slash + last[4:])
        for member, content in entries:
            put(tree, member, content)
    return {
        f"{name}/" if node.is_directory else name: node.content
        for name, node in tree.items()
        if node.content != "device"
    }


def put(tree: dict[str, Node], member: tarfile.TarInfo, content: bytes) -> None:
    name = member.name
    if name.endswith("/.wh..wh..opq"):
        make_directories(tree, name)
        return
    if name.rpartition("/")[2].startswith(".wh."):
        return
    if member.islnk():
        node = tree.get(member.linkname)
        if node is None or node.is_directory:
            raise Dangling
    elif member.isdir():
        node = Node(f"{member.mode:o}", is_directory=True)
    else:
        node = Node("device" if member.ischr() else content.decode())
    make_directories(tree, name)
    if not node.is_directory or not tree.get(name, node).is_directory:
        remove(tree, name)
    if member.islnk() and member.linkname not in tree:
        raise Dangling  # the link itself takes the place of its target, or of what that is in
    tree[name] = node


def make_directories(tree: dict[str, Node], name: str) -> None:
    parts = name.split("/")
    for end in range(1, len(parts)):
        above = "/".join(parts[:end])
        if above not in tree or not tree[above].is_directory:
            tree[above] = Node("755", is_directory=True)


def remove(tree: dict[str, Node], name: str, *, below: bool = False) -> None:
    inside = name if below else f"{name}/"
    for path in [path for path in tree if path.startswith(inside)]:
        del tree[path]
    if not below:
        tree.pop(name, None)


NAMES = st.sampled_from(["a", "b", "a/x", "a/y", "a/x/z", "b/x"])
ENTRIES = st.one_of(
    st.builds(file, NAMES, st.sampled_from([b"1", b"2", b"3", b"4"])),
    st.builds(directory, NAMES, mode=st.sampled_from([0o700, 0o111])),
    st.builds(link, NAMES, NAMES),
    st.builds(whiteout, NAMES),
    st.builds(opaque, st.sampled_from(["", "a", "b", "a/x"])),
    st.builds(lambda name: special(name, tarfile.CHRTYPE), NAMES),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(ENTRIES, max_size=6), min_size=1, max_size=4))
@example([[file("a", b"1"), link("b", "a")], [link("a/x", "b")], [whiteout("b")]])
def test_as_if_unpacked_from_the_lowest_on(layers: list[list[Entry]]) -> None:
    try:
        expected = unpacked(layers)
    except Dangling:
        assume(False)
    try:
        found = merged(*layers)
    except HpcimgError as error:
        raise AssertionError(f"refused: {error}") from error
    assert found == expected
    assert unpacked_by_directory(layers) == expected
