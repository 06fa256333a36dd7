"""Jobs' comments, through to the images or the message in the output."""

from __future__ import annotations

import json

import pytest

from tests.integration.checks import refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.webserver import WebServer


@pytest.mark.parametrize(
    "comment",
    [
        '"container:{}"',
        "a=1,container:{}",
        "Container: {}",
        "container={}",
        '{{"wpps": 3, "container": "{}"}}',
        "{{'container': ['{}']}}",
    ],
)
def test_what_is_meant_without_doubt_is_staged(
    node: Node, url: str, sif: bytes, comment: str
) -> None:
    staged(node, 1, comment.format(url), sif, how="fetched")
    # The way to a warm hit reads the same.
    staged(node, 2, comment.format(url), sif, how="hit")


def test_names_in_json(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    made = [make_sif() for _ in range(2)]
    urls = [web.put(f"/{number}.sif", data) for number, data in enumerate(made)]
    comment = json.dumps({"container": {"ALIGN": urls[0], "CALL": urls[1]}})
    task = staged(node, 1, comment, *made)
    paths = task.exports["HPCIMG_IMAGES"].split(":")
    assert task.exports["HPCIMG_IMAGE_ALIGN"] == paths[0]
    assert task.exports["HPCIMG_IMAGE_CALL"] == paths[1]


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("containers:docker://ubuntu", "did you mean container:docker://ubuntu"),
        ("docker://ubuntu:22.04", "did you mean container:docker://ubuntu:22.04"),
        ("container:/a.sif B=docker://b", "did you mean container:B=docker://b"),
        ("containers:ubuntu:22.04", "did you mean docker://ubuntu:22.04"),
        ('{"container": 1}', "neither text"),
        ('{"container": "\\ud800"}', "characters that no address has"),
        ("Container:ubuntu:22.04", "did you mean docker://ubuntu:22.04"),
        ("image:docker://user:SECRET@h/x", "comments are public"),
        ("image:library://h/x:y?SECRET", "library://h/x:y?..."),
        ("container:docker://nvcr.io", "write / instead"),
    ],
)
def test_what_is_not_fails_the_job_with_the_right_spelling(
    node: Node, comment: str, said: str
) -> None:
    task = refused(node, 1, comment, "BadReference", said)
    assert "SECRET" not in task.printed


def test_an_innocent_comment_is_no_business_of_ours(node: Node) -> None:
    task = node.stage(1, "container test run, see container:?")
    assert (task.code, task.exports, task.printed) == (0, {}, "")
    assert not node.state.exists()


def test_extra_is_read_like_the_comment_and_after_it(
    node: Node, web: WebServer, make_sif: MakeSif
) -> None:
    first, second = make_sif(), make_sif()
    urls = [web.put(f"/{number}.sif", data) for number, data in enumerate((first, second))]
    node.extra = f"container:x={urls[1]}"
    staged(node, 1, None, second)
    task = staged(node, 2, f"rule_a container:{urls[0]}", first, second)
    assert task.exports["HPCIMG_IMAGE_x"] == task.exports["HPCIMG_IMAGES"].split(":")[1]
    staged(node, 3, f"rule_a container:{urls[0]}", first, second, how="hit")
    node.extra = "container:ubuntu"
    refused(node, 4, "rule_b", "BadReference", "did you mean docker://ubuntu")


def test_an_allow_that_is_tightened_holds_for_who_has_the_image_already(
    node: Node, url: str, sif: bytes
) -> None:
    staged(node, 1, f"container:{url}", sif, how="fetched")
    node.configure("[policy]\nallow = /data/*\n")
    refused(node, 2, f"container:{url}", "NotAllowed", "not allowed at this site")
