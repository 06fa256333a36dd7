"""References: the table that the submit filters are tested with as well."""

from __future__ import annotations

import contextlib

import pytest

from hpcimg import reference
from hpcimg.errors import BadReference
from hpcimg.slurm import comment
from tests.reference_cases import INVALID, MISSPELLED, VALID

DIGEST = "sha256:" + "0123456789abcdef" * 4


def parse_token(text: str) -> reference.Reference:
    wanted = comment.read(f"some words container:{text} others")
    if wanted.problem:
        raise BadReference(wanted.problem)
    [(_, found)] = wanted.images
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


@pytest.mark.parametrize(("text", "meant"), MISSPELLED)
def test_a_misspelled_scheme_says_the_nearest(text: str, meant: str) -> None:
    with pytest.raises(BadReference, match=f"did you mean {meant}"):
        reference.parse(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("HTTPS://Example.ORG.:443/a", "https://example.org/a"),
        ("http://h:0080/a", "http://h/a"),
        ("http://h:443/a", "http://h:443/a"),
        ("https://h:/a", "https://h/a"),
        ("https://[2001:DB8:0:0::1]:443/a", "https://[2001:db8::1]/a"),
        ("https://h/%7euser/%61%2fb%c3", "https://h/~user/a%2Fb%C3"),
        ("https://h/a%20b?c=%7E%2f", "https://h/a%20b?c=%7E%2f"),  # a signature is about it
        ("/data//x///y.sif", "file:///data/x/y.sif"),
        ("oci:/data//x/:docker.io//y:1", "oci:/data/x:docker.io//y:1"),
        ("docker-archive:/data/x.tar:", "docker-archive:/data/x.tar"),
        ("docker://GHCR.io.:443/a/b", "docker://ghcr.io/a/b:latest"),
        ("docker://registry:443/a", "docker://registry:443/a:latest"),
        ("docker://registry:/a", "docker://registry:443/a:latest"),
        ("docker://registry#a", "docker://registry:443/a:latest"),
        ("oras://registry:443/a", "oras://registry/a:latest"),
        ("docker://ghcr.io:80/a", "docker://ghcr.io:80/a:latest"),
        (
            "docker://registry-1.docker.io/library/ubuntu",
            "docker://docker.io/library/ubuntu:latest",
        ),
        ("oras://GHCR.io/a/b", "oras://ghcr.io/a/b:latest"),
        ("oras://index.docker.io/u", "oras://docker.io/library/u:latest"),
        (f"docker://ghcr.io/a:1@{DIGEST}", f"docker://ghcr.io/a@{DIGEST}"),
    ],
)
def test_one_spelling_for_one_address(text: str, address: str) -> None:
    assert reference.parse(text).address == address
    assert reference.parse(address).address == address


def test_what_a_server_may_take_an_address_for() -> None:
    found = reference.parse("https://h//private%2Fa%252Fb?q=//%2F").readings()
    assert found == [
        "https://h//private%2Fa%252Fb?q=//%2F",
        "https://h/private/a%2Fb?q=//%2F",
        "https://h/private/a/b?q=//%2F",
    ]
    assert reference.parse("s3://b//a%2Fb").readings() == ["s3://b//a%2Fb"]


def test_long_hostile_texts_take_no_time() -> None:
    for piece in ("@", ":", ":@", "a:b@sha256:", "?", "/", "%", "%25", ".", "#", "[", "a="):
        for text in (piece * 32768, f"https://h/{piece * 500}"[:1024]):
            with contextlib.suppress(BadReference):
                reference.parse(text)
            reference.told(text)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("bwa", "docker://quay.io/biocontainers/bwa:0.7"),
        ("genomics/star:2", "oras://registry.example/genomics/star:2"),
        ("genomics/own/x", "file:///data/own/x"),
        ("/data/image.sif", "file:///data/image.sif"),
        ("HTTPS://Example.org/x#part", "https://example.org/x"),
        ("docker://ubuntu", "docker://docker.io/library/ubuntu:latest"),
        ("library://Lab.Example.:443/a/b/c", "library://lab.example/a/b/c"),
        ("library://Lab.X/b/c", "library://Lab.X/b/c"),
        ("shub://Hub.Example/a/b:1", "shub://hub.example/a/b:1"),
        ("docker://index.docker.io/ubuntu:22.04", "docker://docker.io/library/ubuntu:22.04"),
        ("docker://org/image:1", "docker://docker.io/org/image:1"),
        (f"docker://ubuntu@{DIGEST}", f"docker://docker.io/library/ubuntu@{DIGEST}"),
        (f"docker://u:1@{DIGEST}", f"docker://docker.io/library/u@{DIGEST}"),
        ("docker://GHCR.io/org/image:1", "docker://ghcr.io/org/image:1"),
        ("docker://localhost/image", "docker://localhost/image:latest"),
        ("docker://localhost:5000/a/b", "docker://localhost:5000/a/b:latest"),
        ("docker://nvcr.io#nvidia/pytorch:24.01", "docker://nvcr.io/nvidia/pytorch:24.01"),
        ("docker://user@nvcr.io#nvidia/pytorch", "docker://nvcr.io/nvidia/pytorch:latest"),
        ("docker://myhost#image:1", "docker://myhost:443/image:1"),
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
