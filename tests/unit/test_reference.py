"""References, by the table that the submit filters answer to as well."""

from __future__ import annotations

import pytest

from hpcimg import reference
from hpcimg.errors import BadReference
from hpcimg.slurm import comment
from tests.reference_cases import INVALID, VALID

DIGEST = "sha256:" + "0123456789abcdef" * 4


def parse_token(text: str) -> reference.Reference:
    wanted = comment.wanted(f"some words container:{text} others")
    if problem := comment.problem(wanted):
        raise BadReference(problem)
    [(_, found)] = wanted
    return reference.parse(found)


@pytest.mark.parametrize("text", VALID)
def test_valid(text: str) -> None:
    parsed = parse_token(text)
    # The canonical spelling means the same again, where it is not too long for a comment.
    if len(parsed.address) <= reference.MAX_LENGTH:
        assert reference.parse(parsed.address) == parsed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/x?a=SECRET&b=&SECRET&c=SECRET=SECRET", "https://h/x?a=...&b=...&...&c=..."),
        ("HTTP://H/x?SECRET#SECRET", "http://h/x?..."),
        ("https://h/x", "https://h/x"),
        ("s3://bucket/a?b=c", "s3://bucket/a?b=c"),
        ("/path/a?b=c", "file:///path/a?b=c"),
    ],
)
def test_a_query_is_no_part_of_what_is_shown(text: str, shown: str) -> None:
    assert reference.parse(text).uri == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://user:SECRET@h/x", "https:user:SECRET@h/x", "https:/user:SECRET@h/x.sif",
        "user:SECRET@h/x.sif", "htps://user:SE/CRET@SECRET@h/x", "docker:user:SECRET@h/x",
        "https://user:SECRET@h/$x", "https:/h/x?signature=SECRET", "htps://h/x?SECRET",
        "https://?signature=SECRET", "/a/../x?SECRET", f"https://user:SECRET@h/{'x' * 1024}",
        "oci:user:SECRET@h", "a-b=https://user:SECRET@h/x", "https://h/$x?SECRET",
    ],
)  # fmt: skip
def test_what_may_be_a_secret_is_not_told(text: str) -> None:
    with pytest.raises(BadReference) as caught:
        reference.parse(text)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("text", ["docker://h:1/x@sha256:12 3", "htps://h:1/x:2", "docker:h:1/x:2"])
def test_what_is_none_is_told(text: str) -> None:
    with pytest.raises(BadReference) as caught:
        reference.parse(text)
    assert text in str(caught.value)


@pytest.mark.parametrize(("text", "hint"), INVALID)
def test_invalid_says_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(BadReference) as caught:
        parse_token(text)
    message = str(caught.value)
    assert hint.lower() in message.lower()
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("bwa", "docker://quay.io/biocontainers/bwa:0.7"),
        ("genomics/star:2", "oras://registry.example/genomics/star:2"),
        ("genomics/own/x", "file:///data/own/x"),
        ("/data/image.sif", "file:///data/image.sif"),
        ("HTTPS://Example.org/x#part", "https://example.org/x"),
        ("docker://ubuntu", "docker://docker.io/library/ubuntu:latest"),
        ("docker://index.docker.io/ubuntu:22.04", "docker://docker.io/library/ubuntu:22.04"),
        ("docker://org/image:1", "docker://docker.io/org/image:1"),
        (f"docker://ubuntu@{DIGEST}", f"docker://docker.io/library/ubuntu@{DIGEST}"),
        (f"docker://u:1@{DIGEST}", f"docker://docker.io/library/u:1@{DIGEST}"),
        ("docker://GHCR.io/org/image:1", "docker://ghcr.io/org/image:1"),
        ("docker://localhost/image", "docker://localhost/image:latest"),
        ("docker://localhost:5000/a/b", "docker://localhost:5000/a/b:latest"),
        ("docker://nvcr.io#nvidia/pytorch:24.01", "docker://nvcr.io/nvidia/pytorch:24.01"),
        ("docker://user@nvcr.io#nvidia/pytorch", "docker://nvcr.io/nvidia/pytorch:latest"),
        ("docker://myhost#image:1", "docker://myhost/image:1"),
    ],
)
def test_aliases_and_canonical_spelling(text: str, uri: str) -> None:
    aliases = {
        "bwa": "docker://quay.io/biocontainers/bwa:0.7",
        "genomics/*": "oras://registry.example/genomics/*",
        "genomics/own/*": "/data/own/*",
    }
    assert reference.parse(text, aliases).uri == uri


def test_enroots_spelling_without_a_host() -> None:
    with pytest.raises(BadReference, match="names no image"):
        reference.parse("docker://#ubuntu")


def test_an_alias_cannot_lead_to_another() -> None:
    with pytest.raises(BadReference):
        reference.parse("a", {"a": "b", "b": "docker://ubuntu"})


def test_pinned() -> None:
    digest = "sha256:" + "0" * 64
    assert reference.parse(f"oras://host/image@{digest}").pinned
    assert not reference.parse("oras://host/image:1").pinned
    assert not reference.parse(f"https://host/image@{digest}").pinned
