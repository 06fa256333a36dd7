"""The grammar of the comment: tokens, names, limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcimg.managers import MANAGERS
from hpcimg.slurm import comment as comments
from hpcimg.slurm.comment import MAX_IMAGES, Wanted
from tests.comment_cases import ASKS, INNOCENT, LINKS, MISSED, PROBLEMS


def wanted(comment: str) -> list[tuple[str, str]]:
    return comments.read(comment).images


def problem(images: list[tuple[str, str]]) -> str:
    """Return what is wrong with a job that requests these images."""
    return comments.read(" ".join(f"container:{text}" for text in written(images))).problem


def written(images: list[tuple[str, str]]) -> list[str]:
    return [f"{name}={text}" if name else text for name, text in images]


def read(comment: str) -> Wanted:
    return comments.read(comment)


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


@pytest.mark.parametrize(("comment", "images"), ASKS)
def test_what_is_meant_without_doubt_is_taken(comment: str, images: list[str]) -> None:
    found = read(comment)
    assert written(found.images) == images
    assert (found.problem, found.missed[0]) == ("", "")


@pytest.mark.parametrize("comment", INNOCENT)
def test_what_is_not_ours_is_left_alone(comment: str) -> None:
    found = read(comment)
    assert (found.images, found.problem, found.missed[0]) == ([], "", "")


@pytest.mark.parametrize(("comment", "right"), MISSED)
def test_what_is_nearly_ours_is_told(comment: str, right: str) -> None:
    found = read(comment)
    assert found.missed[1] == right
    assert found.missed[0] != ""
    # As it would be right it is taken.
    [image] = read(f"container:{right}").images
    assert written([image]) == [right]


@pytest.mark.parametrize(("comment", "links"), LINKS)
def test_links_for_workflow_managers(comment: str, links: list[str]) -> None:
    found = read(comment)
    assert (found.links, found.problem, found.missed[0]) == (links, "", "")
    assert set(MANAGERS) >= set(links)


def test_the_same_workflow_managers_are_known_everywhere() -> None:
    assert sorted(comments.MANAGERS) == sorted(MANAGERS)


@pytest.mark.parametrize(("comment", "problem"), PROBLEMS)
def test_what_a_comment_cannot_ask_for(comment: str, problem: str) -> None:
    assert problem in read(comment).problem


def test_the_comment_comes_before_what_extra_has() -> None:
    found = comments.read("container:/a.sif", "container:/b.sif container:/a.sif")
    assert found.images == [("", "/a.sif"), ("", "/b.sif")]
    assert comments.read("", "container:/b.sif").images == [("", "/b.sif")]
    assert "the name x to two images" in comments.read("container:x=/a", "container:x=/b").problem


def test_an_object_that_is_nested_too_deep_is_read_as_words() -> None:
    deep = "[" * 64 + "]" * 64
    assert written(read(f'{{"a":{deep},"container":"/a.sif"}}').images) == ["/a.sif"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "piece",
    [
        '"',
        "'(",
        'container"',
        ",container:",
        '{"container":',
        "[",
        "docker://",
        "a=",
        "container =",
    ],
)
def test_long_hostile_comments_take_no_time(piece: str) -> None:
    for text in (piece * (65536 // len(piece)), "container:" + piece * (65536 // len(piece))):
        read(text)
