"""Prolog and task prolog from end to end, as slurmd calls them, with real files and servers."""

from __future__ import annotations

import json
import os

import pytest

from tests.integration.checks import failed, let_pass, refused, staged, together
from tests.integration.conftest import MakeSif, Start
from tests.parts.node import Node
from tests.parts.webfaults import Html, Status
from tests.parts.webserver import WebServer

# What works


def test_cold_then_warm(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    first = staged(node, 1, f"container:{url}", sif, how="fetched")
    second = staged(node, 2, f"a note, container:{url}", sif, how="hit")
    assert first.exports == second.exports
    assert web.count() == 1
    [path] = node.images()
    assert path.stat().st_mode & 0o7777 == 0o444
    assert path.stat().st_uid == os.geteuid()


def test_what_is_known_of_the_image(node: Node, url: str, sif: bytes) -> None:
    staged(node, 1, f"container:t={url}", sif)
    record = node.record(1)
    [image] = record["images"]
    assert (record["version"], record["job"], record["uid"]) == (1, "1", node.uid)
    assert (image["name"], image["uri"], image["text"]) == ("t", url, url)
    [meta] = node.cache.glob("meta/*.json")
    known = json.loads(meta.read_text())
    assert known["key"] == image["key"]
    assert (known["size_bytes"], known["uris"], known["extension"]) == (len(sif), [url], "sif")
    assert f"{url} is at {image['path']} (fetched)" in node.log()


def test_several_images_with_names(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    made = [make_sif() for _ in range(3)]
    urls = [web.put(f"/{number}.sif", data) for number, data in enumerate(made)]
    comment = f"container:{urls[0]} x;container:tool={urls[1]}\ncontainer:_2={urls[2]}"
    task = staged(node, 1, comment, *made)
    paths = task.exports["HPCIMG_IMAGES"].split(":")
    assert task.exports["HPCIMG_IMAGE_tool"] == paths[1]
    assert task.exports["HPCIMG_IMAGE__2"] == paths[2]
    assert len(task.exports) == 4
    staged(node, 2, comment, *made, how="hit")
    # One of them new: the others stay warm.
    new = make_sif()
    staged(node, 3, f"{comment} container:{web.put('/new.sif', new)}", *made, new)
    assert [image["source"] for image in node.record(3)["images"]] == ["hit"] * 3 + ["fetched"]
    assert web.count() == 4


def test_long_references_and_aliases(node: Node, web: WebServer, sif: bytes) -> None:
    # A reference becomes a file name, with something before and after it.
    lengths = (240, 244, 245, 1000)
    urls = [web.put("/" + "x" * (length - len(web.url("/"))), sif) for length in lengths]
    assert tuple(map(len, urls)) == lengths
    comment = " ".join(f"container:{url}" for url in urls)
    staged(node, 1, comment, *[sif] * len(urls))
    staged(node, 4, comment, *[sif] * len(urls), how="hit")
    node.configure(f"[alias]\nbase/* = {web.url('/')}*\n")
    web.put("/short.sif", sif)
    staged(node, 2, "container:base/short.sif", sif)
    staged(node, 3, "container:base/short.sif", sif, how="hit")


def test_two_addresses_of_one_content_are_stored_once(
    node: Node, web: WebServer, sif: bytes
) -> None:
    urls = [web.put(path, sif) for path in ("/a.sif", "/b.sif")]
    staged(node, 1, f"container:{urls[0]} container:{urls[1]}", sif, sif)
    assert len(node.images()) == 1
    [meta] = node.cache.glob("meta/*.json")
    assert json.loads(meta.read_text())["uris"] == urls
    assert len(node.leases()) == 1


def test_the_same_job_again(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    refused(node, 1, "container:ubuntu", "BadReference")
    # Requeued with another comment, without an Epilog in between.
    staged(node, 1, f"container:{url}", sif)
    staged(node, 1, f"container:{url}", sif, how="hit")
    web.script("/y.sif", [Status(404)])
    refused(node, 1, f"container:{web.url('/y.sif')}", "NotFound")
    staged(node, 1, f"container:{url}", sif, how="hit")


def test_after_a_reboot(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    staged(node, 1, f"container:{url}", sif)
    node.reboot()
    assert node.leases() == set()
    staged(node, 2, f"container:{url}", sif, how="hit")
    staged(node, 3, f"container:{url}", sif, how="hit")
    assert web.count() == 1
    assert {job for _, job in node.leases()} == {"2", "3"}


def test_a_clock_that_was_set_back(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    staged(node, 1, f"container:{url}", sif)
    # Everything is of tomorrow now. It is asked for again, and not believed for ever.
    let_pass(node, -86400)
    staged(node, 2, f"container:{url}", sif, how="unchanged")
    assert [request.status for request in web.requests()] == [200, 304]
    staged(node, 3, f"container:{url}", sif, how="hit")
    assert web.count() == 2


@pytest.mark.parametrize("comment", [None, "", "nothing of ours", "x" * 64 * 1024])
def test_a_job_without_an_image(node: Node, comment: str | None) -> None:
    assert node.stage(1, comment) == (0, {}, "")
    assert not node.cache.exists()
    assert not node.state.exists()


def test_what_the_site_forbids_is_refused_at_once_though_it_is_warm(
    node: Node, url: str, sif: bytes
) -> None:
    staged(node, 1, f"container:{url}", sif)
    node.configure("[policy]\ndeny = http://*\n")
    refused(node, 2, f"container:{url}", "NotAllowed", "is not allowed at this site")
    node.configure("[policy]\nallow = oras://* /data/*\n")
    refused(node, 3, f"container:{url}", "NotAllowed")


@pytest.mark.parametrize("state", ["warm", "rebooted"])
def test_a_file_that_is_not_what_was_stored_is_not_handed_out(
    node: Node, web: WebServer, url: str, sif: bytes, state: str
) -> None:
    staged(node, 1, f"container:{url}", sif)
    [path] = node.images()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(len(sif) - 1)
    path.chmod(0o444)
    if state == "rebooted":
        node.reboot()
    staged(node, 2, f"container:{url}", sif, how="fetched")
    assert len(node.images()) == 1


# What users do


@pytest.mark.parametrize(
    ("token", "error", "words"),
    [
        ("container:ubuntu:22.04", "BadReference", "did you mean docker://ubuntu:22.04"),
        ("container:", "BadReference", "followed by nothing"),
        ("container:$IMAGE", "BadReference", "Variables are not expanded"),
        ("container:/data/\x1b[2J.sif", "BadReference", "\\x1b"),
        ("container:/data/\N{NO-BREAK SPACE}x.sif", "BadReference", "characters"),
        ("container:" + "x" * 64_000, "BadReference", "1024 is the limit"),
        ("container:a=/x.sif container:a=/y.sif", "BadReference", "name a to two images"),
        (" ".join(f"container:/{n}.sif" for n in range(33)), "BadReference", "33 images"),
        ("container:dokcer://ubuntu", "BadReference", "did you mean docker://ubuntu"),
        ("container:http://h/x\\n\texit 0", "BadReference", "characters"),
    ],
    ids=lambda value: str(value)[:30].encode("unicode_escape").decode(),
)
def test_bad_references(node: Node, token: str, error: str, words: str) -> None:
    task = refused(node, 1, f"my job {token}", error, words)
    assert task.printed.isprintable()
    assert node.record(1)["class"] == "user"
    assert node.leases() == set()


def test_nothing_is_fetched_where_one_of_several_is_wrong(
    node: Node, web: WebServer, url: str
) -> None:
    refused(node, 1, f"container:{url} container:ubuntu", "BadReference")
    assert web.count() == 0


def test_a_server_that_says_no_is_asked_once(start: Start, node: Node, web: WebServer) -> None:
    cases = [
        (404, "NotFound", "there is nothing at"),
        (410, "NotFound", "there is nothing at"),
        (403, "Forbidden", "may not be read without permission"),
        (401, "Forbidden", "may not be read without permission"),
        (400, "UserError", "could not be read"),
    ]
    urls = [web.url(f"/{status}.sif") for status, _, _ in cases]
    for status, _, _ in cases:
        web.script(f"/{status}.sif", [Status(status)])
    tasks = together(start, node, *(f"container:{url}" for url in urls))
    for (job, task), url, (status, error, words) in zip(tasks.items(), urls, cases, strict=True):
        failed(node, job, task, error, words, url, f"the server answered {status}")
        assert node.record(job)["class"] == "user"
    assert web.count() == len(cases)
    assert node.images() == []


def test_a_page_is_not_an_image(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    web.script("/x.sif", [Html()])
    refused(node, 1, f"container:{url}", "NotAnImage", "is not an image: it is a web page")
    assert node.images() == []
    # Nor is it remembered for long.
    let_pass(node, 60)
    staged(node, 2, f"container:{url}", sif, how="fetched")


def test_another_architecture(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    url = web.put("/x.sif", make_sif(arch="s390x"))
    refused(node, 1, f"container:{url}", "WrongArchitecture", "it was built for s390x")
    assert node.images() == []
