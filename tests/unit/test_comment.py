"""The grammar of the comment: tokens, names, limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.slurm.comment import MAX_IMAGES, problem, wanted


@pytest.mark.parametrize(
    ("comment", "images"),
    [
        ("", []),
        ("nothing of ours", []),
        ("container:/a.sif", [("", "/a.sif")]),
        ("project=x container:/a.sif ticket 12", [("", "/a.sif")]),
        ("container:/a.sif container:/b.sif", [("", "/a.sif"), ("", "/b.sif")]),
        ("container:/a.sif;container:/b.sif;", [("", "/a.sif"), ("", "/b.sif")]),
        ("\tcontainer:/a.sif\r\ncontainer:/b.sif\v\fx", [("", "/a.sif"), ("", "/b.sif")]),
        ("container:tool=/a.sif", [("tool", "/a.sif")]),
        ("container:_T0=oras://h/i", [("_T0", "oras://h/i")]),
        # What the environment names is added to the comment, where it may be already.
        ("container:/a.sif container:/b.sif container:/a.sif", [("", "/a.sif"), ("", "/b.sif")]),
        ("container:t=/a.sif;container:t=/a.sif", [("t", "/a.sif")]),
        # Only the first = makes a name, and only before something that can be one.
        ("container:a=b=c", [("a", "b=c")]),
        ("container:/a=b.sif", [("", "/a=b.sif")]),
        ("container:my-tool=/a.sif", [("", "my-tool=/a.sif")]),
        ("container:2nd=/a.sif", [("", "2nd=/a.sif")]),
        ("container:=/a.sif", [("", "=/a.sif")]),
        ("container:tool=", [("tool", "")]),
        ("container:", [("", "")]),
        # A token begins with the mark, in this spelling.
        ("mycontainer:/a.sif", []),
        ("Container:/a.sif", []),
        ("container /a.sif", []),
        ("container:container:/a.sif", [("", "container:/a.sif")]),
    ],
)
def test_tokens(comment: str, images: list[tuple[str, str]]) -> None:
    assert wanted(comment) == images
    assert problem(images) == ""


@pytest.mark.parametrize("blank", ["\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}", "\x85", "\x1c"])
def test_only_ascii_blanks_separate(blank: str) -> None:
    # Else a parser at submission that knows bytes would see other tokens than this one.
    text = f"/a.sif{blank}container:/b.sif"
    assert wanted(f"container:{text}") == [("", text)]


@pytest.mark.parametrize("wild", ["\x00", "\x1b[2J", "\x07", "\x7f", "\udcff", "\u202e"])
def test_control_characters_come_back_as_they_are(wild: str) -> None:
    assert wanted(f"x container:/a{wild}.sif y") == [("", f"/a{wild}.sif")]


def test_64_kib() -> None:
    size = 64 * 1024
    assert wanted("x" * size) == []
    assert wanted("container:" + "x" * size) == [("", "x" * size)]
    crowd = "".join(f"container:{number:05} " for number in range(size // 16))
    assert len(crowd) == size
    assert wanted(crowd) == [("", f"{number:05}") for number in range(size // 16)]
    assert "4096 images" in problem(wanted(crowd))


def test_how_many() -> None:
    images = [("", f"/{number}.sif") for number in range(MAX_IMAGES)]
    assert MAX_IMAGES == 32
    assert problem(images) == ""
    assert "33 images, 32 is the limit" in problem([*images, ("", "/one-more.sif")])


def test_names() -> None:
    assert problem([("a" * 64, "/a.sif")]) == ""
    assert "65 characters, 64 is the limit" in problem([("a" * 65, "/a.sif")])
    assert problem([("a", "/a.sif"), ("A", "/a.sif")]) == ""
    assert "the name a to two images" in problem([("a", "/a.sif"), ("b", "/a"), ("a", "/b.sif")])
    # Without a name there is nothing to confuse.
    assert problem([("", "/a.sif"), ("", "/b.sif")]) == ""


@given(st.text())
def test_any_text(comment: str) -> None:
    for name, _ in wanted(comment):
        assert name == "" or name.isascii()
        assert name == "" or name.isidentifier()
    assert len(wanted(comment)) <= comment.count("container:")
