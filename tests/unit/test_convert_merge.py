"""Merging layers: what the OCI image specification says about whiteouts, links and order."""

from __future__ import annotations

import io
import stat
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hpcimg.convert.replay import replay
from hpcimg.errors import HpcimgError, NotAnImage, TooLarge
from tests.parts.layers import (
    directory,
    file,
    link,
    opaque,
    special,
    symlink,
    tar,
    whiteout,
)  # fmt: skip
from tests.parts.merging import archive_of, unpack_into

Entry = tuple[tarfile.TarInfo, bytes]
Merged = dict[str, str]


def merged(*layers: Sequence[Entry], limit: int = 0) -> Merged:
    """Return the content of an image with these layers, lowest first; directories end with /."""
    data = [tar(*entries) for entries in layers]
    found = read(archive_of(data, limit=limit))
    assert read(archive_of(data, limit=limit, ways=[replay])) == found
    return found


def read(stream: bytes) -> Merged:
    """Return the content of a stream: each path occurs once, and links follow their targets."""
    found: Merged = {}
    with tarfile.open(fileobj=io.BytesIO(stream), mode="r|") as archive:
        for member in archive:
            name = f"{member.name}/" if member.isdir() else member.name
            assert name not in found
            if member.isreg():
                content = archive.extractfile(member)
                assert content
                found[name] = content.read().decode()
            elif member.islnk():
                found[name] = found[member.linkname]
            elif member.isdir():
                found[name] = f"{member.mode:o}"
            else:
                assert member.issym() or member.isfifo()
                found[name] = f"-> {member.linkname}"
    return found


def unpacked_by_directory(layers: Sequence[Sequence[Entry]]) -> Merged:
    """Return what a directory holds of these layers, with the modes that are in the pseudo file."""
    with tempfile.TemporaryDirectory() as path:
        pseudo = unpack_into(Path(path), [tar(*entries) for entries in layers])
        restored = dict(line.split(" m ") for line in pseudo.decode().splitlines())
        return {
            name: f"{int(restored[name[:-1]].split()[0], 8):o}"
            if name[:-1] in restored
            else content
            for name, content in on_disk(Path(path))
        }


def on_disk(top: Path) -> Iterator[tuple[str, str]]:
    for path in top.rglob("*"):
        name = str(path.relative_to(top))
        if path.is_symlink():
            yield name, f"-> {path.readlink()}"
        elif path.is_dir():
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
            {"lib": "-> usr/lib", "usr/": "755", "usr/lib/": "755", "usr/lib/x": "",
             "usr/lib/y": ""},
            id="symbolic links are followed",
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
        pytest.param(
            [[file(".wh.d/x", b"1")]], {".wh.d/": "755", ".wh.d/x": "1"}, id="no mark on the way"
        ),
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
        [[file("a"), link("a", "a")]],
        [[symlink("l", "d"), file("d/a"), link("l", "l/a")]],
    ],
)
def test_a_hard_link_to_nothing_is_refused(layers: list[list[Entry]]) -> None:
    with pytest.raises(NotAnImage, match=r"is a hard link to .*a, which does not exist"):
        merged(*layers)


def test_too_large() -> None:
    layers = [[file("a", bytes(600))], [file("b", bytes(600)), whiteout("c")]]
    assert merged(*layers, limit=1200)
    with pytest.raises(TooLarge, match="more than 1199 bytes"):
        merged(*layers, limit=1199)


# Symbolic links on the way

LIB = [directory("usr"), directory("usr/lib", mode=0o711), symlink("lib", "usr/lib")]
IN_LIB = {"usr/": "755", "usr/lib/": "711", "lib": "-> usr/lib", "usr/lib/x": "1"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([[*LIB, file("lib/x", b"1")]], IN_LIB, id="in the layer"),
        pytest.param([LIB, [file("lib/x", b"1")]], IN_LIB, id="in the next one"),
        pytest.param([LIB, [], [file("lib/x", b"1")]], IN_LIB, id="in the one after it"),
        pytest.param(
            [LIB, [file("lib/x", b"1")], [directory("lib"), file("lib/y", b"2")]],
            {"usr/": "755", "usr/lib/": "711", "usr/lib/x": "1", "lib/": "755", "lib/y": "2"},
            id="a directory takes the place of a link",
        ),
        pytest.param(
            [[*LIB, directory("lib"), file("lib/y", b"2")]],
            {"usr/": "755", "usr/lib/": "711", "lib/": "755", "lib/y": "2"},
            id="a directory takes the place of a link, in the layer",
        ),
        pytest.param(
            [[directory("lib"), file("lib/y"), *LIB, file("lib/x", b"1")]],
            IN_LIB,
            id="a link takes the place of a directory, in the layer",
        ),
        pytest.param(
            [LIB, [file("lib/x", b"1")], [whiteout("lib")]],
            {name: what for name, what in IN_LIB.items() if name != "lib"},
            id="the link is hidden, and what was put through it is not",
        ),
        pytest.param(
            [[*LIB, file("lib/x", b"1")], [file("lib", b"2")]],
            {**IN_LIB, "lib": "2"},
            id="the link is replaced, and what was put through it is not",
        ),
        pytest.param(
            [[*LIB, file("usr/lib/old"), file("usr/lib/x", b"1")], [whiteout("lib/old")]],
            IN_LIB,
            id="a whiteout",
        ),
        pytest.param(
            [[*LIB, file("usr/lib/old")], [opaque("lib"), file("lib/x", b"1")]],
            IN_LIB,
            id="an opaque directory",
        ),
        pytest.param(
            [[*LIB, file("usr/lib/x", b"1"), link("b", "lib/x")]],
            {**IN_LIB, "b": "1"},
            id="the target of a hard link",
        ),
        pytest.param(
            [[*LIB, file("usr/lib/x", b"1")], [link("b", "lib/x")]],
            {**IN_LIB, "b": "1"},
            id="the target of a hard link in a lower layer",
        ),
        pytest.param(
            [[*LIB, link("lib64", "lib"), file("lib64/x", b"1")]],
            {**IN_LIB, "lib64": "-> usr/lib"},
            id="a hard link to a link",
        ),
        pytest.param(
            [[symlink("a", "/b/c"), symlink("b", "x/../d"), symlink("d/c", "../../../e"),
              file("a/f", b"1")]],
            {"a": "-> /b/c", "b": "-> x/../d", "d/": "755", "d/c": "-> ../../../e", "e/": "755",
             "e/f": "1"},
            id="links of all kinds, and none leads out of the root",
        ),
        pytest.param(
            [[symlink("l", "f"), file("f"), file("l/x", b"1")]],
            {"l": "-> f", "f/": "755", "f/x": "1"},
            id="to a file, which gives way as without a link",
        ),
        pytest.param(
            [[symlink("l", "l"), file("x", b"1")], [whiteout("l")], [file("l/x", b"2")]],
            {"x": "1", "l/": "755", "l/x": "2"},
            id="a link to itself that is gone",
        ),
        pytest.param(
            [[file("a", b"1")], [link("b", "a"), whiteout("a")]], {"b": "1"},
            id="a whiteout behind a hard link to a lower layer",
        ),
        pytest.param(
            [[file("d/a", b"1")], [link("b", "d/a"), opaque("d")]], {"b": "1", "d/": "755"},
            id="an opaque directory behind a hard link to a lower layer",
        ),
    ],
)  # fmt: skip
def test_links_on_the_way(layers: list[list[Entry]], expected: Merged) -> None:
    assert merged(*layers) == expected
    assert unpacked_by_directory(layers) == expected


@pytest.mark.parametrize("name", ["l/x", "l/.wh.x", "l/.wh..wh..opq"])
def test_links_without_end(name: str) -> None:
    around = [symlink("l", "m/n"), symlink("m", "l")]
    with pytest.raises(NotAnImage, match=r"l/.* leads through more than 255 symbolic links"):
        merged(around, [file(name)])
    with pytest.raises(NotAnImage, match="y in it leads through more than 255 symbolic links"):
        merged(around, [link("y", "l/x")])


def test_a_path_that_links_make_too_long() -> None:
    long = "/".join(["d" * 200] * 20)
    with pytest.raises(NotAnImage, match="leads to a path that is too long"):
        merged([symlink("l", f"{long}"), file(f"l/{long}")])
    with pytest.raises(NotAnImage, match="leads to a name that is too long"):
        merged([symlink("l", "d" * 256), file("l/x")])


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
        touched: set[str] = set()  # with what that is in: whiteouts are for lower layers
        for member, content in entries:
            head, slash, last = member.name.rpartition("/")
            if last == ".wh..wh..opq":
                remove(tree, head + slash, below=True, but=touched)
            elif last.startswith(".wh."):
                remove(tree, head + slash + last[4:], but=touched)
            else:
                put(tree, member, content)
                parts = member.name.split("/")
                touched |= {"/".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return {
        f"{name}/" if node.is_directory else name: node.content
        for name, node in tree.items()
        if node.content != "device"
    }


def put(tree: dict[str, Node], member: tarfile.TarInfo, content: bytes) -> None:
    name = member.name
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


def remove(
    tree: dict[str, Node], name: str, *, below: bool = False, but: Collection[str] = ()
) -> None:
    inside = name if below else f"{name}/"
    for path in list(tree):
        if (path.startswith(inside) or (path == name and not below)) and path not in but:
            del tree[path]


# It knows of no symbolic links: with those, umoci is the model, in tests/integration/test_peers.py.
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
