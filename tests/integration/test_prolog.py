"""Prolog and task prolog from end to end, as slurmd calls them, with real files and servers."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcimg import stage
from hpcimg.slurm import prolog
from tests.integration.checks import (
    failed,
    finish,
    got,
    let_pass,
    refused,
    staged,
    together,
    wait_for_log,
)
from tests.integration.conftest import MakeSif, Start
from tests.parts.daemon import wait_until
from tests.parts.node import Node
from tests.parts.webanswer import Answer, Request
from tests.parts.webfaults import Html, Status
from tests.parts.webserver import WebServer

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a small tmpfs there for a while."""
    argv = ["mount", "-t", "tmpfs", "-o", f"size=1m,{options}", "tmpfs", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def sif(make_sif: MakeSif) -> bytes:
    return make_sif()


@pytest.fixture
def url(web: WebServer, sif: bytes) -> str:
    """The address of an image."""
    return web.put("/x.sif", sif, etag='"1"')


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
    lengths = (230, 240, 245, 250, 260, 1000)
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


# Who does what


def descendants(pid: int) -> list[int]:
    """Return a process' children, their children and so on."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [other for child in map(int, children) for other in (child, *descendants(child))]


def status_of(pid: int) -> dict[str, list[str]]:
    """Return what the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


@pytest.fixture
def more_groups() -> Iterator[None]:
    """Be in more groups than one, as slurmd may be."""
    before = os.getgroups()
    os.setgroups([0, 4])
    yield
    os.setgroups(before)


@AS_ROOT
@pytest.mark.usefixtures("more_groups")
def test_what_touches_the_network_is_not_root(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    with web.hold("/x.sif", after_bytes=100_000) as hold:
        prolog = start(node, 1, f"container:{url}")
        hold.wait_reached()
        *_, parent, child = descendants(prolog.pid)
        seen = status_of(child)
        assert set(status_of(prolog.pid)["Groups"]) == {"0", "4"}
        assert set(seen["Uid"]) == set(seen["Gid"]) != {"0"}
        assert (seen["Groups"], seen["CapEff"], seen["NoNewPrivs"]) == ([], ["0" * 16], ["1"])
        assert set(status_of(parent)["Uid"]) == {"0"}
        # The one has no socket, the other no file of the cache but the one that it was handed.
        assert [name for name in open_files(parent) if name.startswith("socket:")] == []
        below = [name for name in open_files(child) if name.startswith(str(node.folder))]
        assert [Path(name).parent for name in below] == [node.cache / "tmp"]
        hold.release()
        finish(prolog)
    got(node, 1, node.task(1), sif)


def open_files(pid: int) -> list[str]:
    """Return what a process has open."""
    return [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]


def test_who_fetches_dies_with_its_parent_and_the_hook_still_ends_well(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    with web.hold("/x.sif", after_bytes=300_000):
        prolog = start(node, 1, f"container:{url}")
        # It has written something, has told its parent, and waits for the network alone.
        wait_until(
            lambda: any(path.stat().st_size for path in node.cache.glob("tmp/*")),
            timeout_s=10,
            what="the first bytes",
        )
        *_, parent, child = descendants(prolog.pid)
        wait_until(
            lambda: status_of(child)["State"][0] == "S", timeout_s=10, what="a wait for more"
        )
        os.kill(parent, signal.SIGKILL)
        wait_until(lambda: gone(child), timeout_s=10, what="the end of the process that fetches")
        prolog.communicate(timeout=10)
        assert prolog.returncode == 0
    assert "interrupted" in node.task(1).printed
    staged(node, 2, f"container:{url}", sif, how="fetched")


def gone(pid: int) -> bool:
    """Tell whether a process has ended, waited for or not."""
    try:
        return status_of(pid)["State"][0] == "Z"
    except OSError:
        return True


def test_asks_slurm_for_the_comment_where_the_site_says_so(
    in_process: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho container:ubuntu:22.04\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_JOB_COMMENT")
    in_process.configure("[slurm]\ncomment = query\n")
    assert prolog.main() == 0
    failed(in_process, 1, in_process.task(1), "BadReference", "docker://ubuntu:22.04")


# What users do


@pytest.mark.parametrize(
    ("token", "error", "words"),
    [
        ("container:ubuntu:22.04", "BadReference", "did you mean docker://ubuntu:22.04"),
        ("container:", "BadReference", "followed by nothing"),
        ("container:$IMAGE", "BadReference", "Variables are not replaced"),
        ("container:/data/\x1b[2J.sif", "BadReference", "\\x1b"),
        ("container:/data/\N{NO-BREAK SPACE}x.sif", "BadReference", "characters"),
        ("container:" + "x" * 64_000, "BadReference", "1024 is the limit"),
        ("container:a=/x.sif container:a=/y.sif", "BadReference", "name a to two images"),
        (" ".join(f"container:/{n}.sif" for n in range(33)), "BadReference", "33 images"),
        ("container:docker://ubuntu", "BadReference", "no source for docker:"),
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
    # Nor is it remembered.
    staged(node, 2, f"container:{url}", sif, how="fetched")


def test_another_architecture(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    url = web.put("/x.sif", make_sif(arch="s390x"))
    refused(node, 1, f"container:{url}", "WrongArchitecture", "it was built for s390x")
    assert node.images() == []


# Several at once


def test_the_second_waits_for_the_first(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    with web.hold("/x.sif", after_bytes=100_000) as hold:
        first = start(node, 1, f"container:{url}")
        hold.wait_reached()
        second = start(node, 2, f"container:{url}")
        wait_for_log(node, f"job 2 waits for {url}, which another job is bringing")
        # Neither finds a part of an image.
        assert node.images() == []
        assert not list(node.state.glob("jobs/*/task"))
        hold.release()
        finish(first)
        finish(second)
    got(node, 1, node.task(1), sif, how="fetched")
    got(node, 2, node.task(2), sif, how="waited")
    assert web.count() == 1


def test_a_waiter_gives_up_at_its_deadline(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    with web.hold("/x.sif") as hold:
        first = start(node, 1, f"container:{url}")
        hold.wait_reached()
        node.configure("[stage]\ndeadline = 0.3s\n")
        task = node.stage(2, f"container:{url}")
        assert task.code == 1
        assert "another job on this node was still at work on the same image" in task.printed
        assert node.record(2)["class"] == "transient"
        hold.release()
        finish(first)
    got(node, 1, node.task(1), sif)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_waiter_that_is_cancelled_hinders_nobody(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes, how: signal.Signals
) -> None:
    with web.hold("/x.sif") as hold:
        first = start(node, 1, f"container:{url}")
        hold.wait_reached()
        second = start(node, 2, f"container:{url}")
        wait_for_log(node, "job 2 waits for")
        os.killpg(second.pid, how)
        second.communicate(timeout=10)
        node.epilog(2)
        hold.release()
        finish(first)
    got(node, 1, node.task(1), sif)
    staged(node, 3, f"container:{url}", sif, how="hit")
    assert web.count() == 1
    assert {job for _, job in node.leases()} == {"1", "3"}
    assert not (node.state / "jobs" / "2").exists()


def test_a_waiter_takes_over_from_one_that_was_killed(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    with web.hold("/x.sif", after_bytes=100_000) as hold:
        first = start(node, 1, f"container:{url}")
        hold.wait_reached()
        second = start(node, 2, f"container:{url}")
        wait_for_log(node, "job 2 waits for")
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate(timeout=10)
        hold.release()
        finish(second)
    got(node, 2, node.task(2), sif, how="fetched")
    assert web.count() == 2
    # The job of the one that was killed must not start without its image.
    task = node.task(1)
    assert task.code == 1
    assert "Prolog was interrupted" in task.printed
    node.epilog(1)
    assert {job for _, job in node.leases()} == {"2"}


def test_the_next_one_takes_over_from_one_that_was_killed(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    with web.hold("/x.sif", after_bytes=100_000) as hold:
        first = start(node, 1, f"container:{url}")
        hold.wait_reached()
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate(timeout=10)
    assert node.leftovers() != []
    staged(node, 2, f"container:{url}", sif, how="fetched")
    assert node.hpcimg_json("status")["counts"]["sweep"] == 1


def test_those_who_waited_share_a_failure(
    start: Start, node: Node, web: WebServer, url: str
) -> None:
    may_answer = threading.Event()

    def late(_: Request) -> Answer:
        may_answer.wait(60)
        return Answer(404)

    web.handle("/x.sif", late)
    first = start(node, 1, f"container:{url}")
    web.wait_count(1)
    second = start(node, 2, f"container:{url}")
    wait_for_log(node, "job 2 waits for")
    may_answer.set()
    finish(first)
    finish(second)
    failed(node, 1, node.task(1), "NotFound")
    failed(node, 2, node.task(2), "NotFound")
    assert web.count() == 1


# What is wrong with the node


@pytest.fixture
def in_process(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node whose Prolog runs in this process, as job 1, with /x.sif for its comment."""
    for name, value in node.environment(1, "container:/x.sif").items():
        monkeypatch.setenv(name, value)
    logger = logging.getLogger("hpcimg")
    before = logger.handlers[:], logger.level, logger.propagate
    yield node
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before


def test_what_is_unforeseen_fails_the_job_and_not_the_node(
    in_process: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a \x1b mistake\nof ours")

    monkeypatch.setattr(stage, "stage", broken)
    assert prolog.main() == 0
    task = in_process.task(1)
    assert task.code == 1
    assert "hpcimg failed on this node: ValueError: a \\x1b mistake\\nof ours" in task.printed
    assert in_process.record(1)["class"] == "bug"
    log = in_process.log()
    assert "Traceback (most recent call last)" in log
    assert "in broken" in log
    assert all(line.count("hpcimg prolog job 1") == 1 for line in log.splitlines())


def test_what_is_unforeseen_and_cannot_be_told_is_in_the_log(
    in_process: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.state.write_text("no folder")
    assert prolog.main() == 0
    assert "the job cannot be told" in in_process.log()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("[cache]\nmax_sice = 1G\n", "test.conf: unknown key 'max_sice' in [cache]"),
        ("[stage]\ndeadline = soon\n", "test.conf: [stage] deadline: 'soon' is not a time"),
        ("[stash]\n", "test.conf: unknown section [stash]"),
        ("[cache]\npath = here\n", "test.conf: [cache] path: 'here' is not an absolute path"),
        ("max_size = 1G\n", "test.conf"),
    ],
)
def test_a_wrong_configuration(start: Start, node: Node, settings: str, words: str) -> None:
    node.configure(settings)
    # Where to log is not known either: standard error is where it goes without a syslog.
    hook = start(node, 1, "container:/x.sif")
    hook.communicate(timeout=60)
    assert hook.returncode == 0
    failed(node, 1, node.task(1), "ConfigError", words)
    assert node.record(1)["class"] == "node"
    # Who wants no image is not bothered.
    assert node.stage(2, "just a note") == (0, {}, "")


def test_a_configuration_that_is_missing(start: Start, node: Node) -> None:
    (node.folder / "conf.d" / "state.conf").write_text(f"[state]\npath = {node.state}\n")
    node.conf.unlink()
    hook = start(node, 1, "container:/x.sif")
    hook.communicate(timeout=60)
    assert hook.returncode == 0
    failed(node, 1, node.task(1), "ConfigError", f"{node.conf} cannot be read")


def test_a_file_where_the_cache_should_be(node: Node) -> None:
    node.cache.touch()
    refused(node, 1, "container:/x.sif", "CacheUnusable", f"{node.cache}", "folder")
    assert node.record(1)["class"] == "node"


def test_a_file_where_a_folder_of_the_cache_should_be(node: Node) -> None:
    node.cache.mkdir()
    (node.cache / "locks").touch()
    refused(node, 1, "container:/x.sif", "CacheUnusable", f"{node.cache}/locks is not a folder")


def test_a_link_where_a_folder_of_the_cache_should_be(node: Node, tmp_path: Path) -> None:
    node.cache.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (node.cache / "images").symlink_to(tmp_path / "elsewhere")
    refused(node, 1, "container:/x.sif", "CacheUnusable", f"{node.cache}/images is not a folder")


def test_a_cache_that_others_may_write(node: Node) -> None:
    node.cache.mkdir()
    node.cache.chmod(0o777)
    refused(node, 1, "container:/x.sif", "CacheUnusable", "is not safe", "0777")


@AS_ROOT
def test_a_cache_that_is_somebody_elses(node: Node) -> None:
    node.cache.mkdir()
    os.chown(node.cache, 1, 1)
    refused(node, 1, "container:/x.sif", "CacheUnusable", "is not safe", "its owner is uid 1")


@NOT_ROOT
def test_a_cache_that_may_not_be_written(node: Node) -> None:
    node.cache.mkdir(mode=0o555)
    refused(node, 1, "container:/x.sif", "CacheUnusable", f"{node.cache}")


@AS_ROOT
def test_a_cache_that_is_mounted_read_only(node: Node) -> None:
    node.cache.mkdir()
    with mounted(node.cache, "ro"):
        refused(node, 1, "container:/x.sif", "CacheUnusable", f"{node.cache}")


@AS_ROOT
def test_tmp_on_another_file_system(node: Node, url: str, sif: bytes) -> None:
    (node.cache / "tmp").mkdir(parents=True)
    with mounted(node.cache / "tmp", "mode=0700"):
        refused(node, 1, f"container:{url}", "CacheUnusable", "is on another file system than")
    staged(node, 2, f"container:{url}", sif)


def test_folders_are_made_for_others_to_read_whatever_the_umask(
    node: Node, url: str, sif: bytes
) -> None:
    before = os.umask(0o077)
    try:
        assert node.hpcimg("stage", url).returncode == 0
    finally:
        os.umask(before)
    [path] = node.images()
    for folder in (node.cache, node.state, path.parent):
        assert folder.stat().st_mode & 0o777 == 0o755
    staged(node, 1, f"container:{url}", sif, how="hit")
