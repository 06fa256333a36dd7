"""A fault of the node or of hpcimg itself fails the job, and does not drain the node."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcimg import node as node_cache
from hpcimg import stage
from hpcimg.cache import directories
from hpcimg.cache.paths import Layout
from hpcimg.errors import (
    CacheUnusable,
    ConfigError,
    HpcimgError,
    MissingTool,
    NodeError,
    NoRoom,
)
from hpcimg.slurm import prolog
from tests.integration.checks import failed, refused, staged
from tests.integration.conftest import Start
from tests.parts.node import Node

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@contextmanager
def mounted(directory: Path, options: str, *, kind: str = "tmpfs") -> Iterator[None]:
    """Mount a small tmpfs there for a while, or another kind of file system in memory."""
    argv = ["mount", "-t", kind, "-o", f"size=1m,{options}", kind, str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


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
    [failure] = in_process.hpcimg_json("status")["failures"]
    assert (failure["class"], failure["job"]) == ("bug", "1")
    log = in_process.log()
    assert "Traceback (most recent call last)" in log
    assert "in broken" in log
    assert all(line.count("hpcimg prolog job 1") == 1 for line in log.splitlines())


def test_a_traceback_says_nothing_to_a_terminal(
    in_process: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It quotes what a server sent."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("\x1b]0;a title\x07\x9b31m" + "x" * 100_000)

    monkeypatch.setattr(stage, "stage", broken)
    assert prolog.main() == 0
    log = in_process.log()
    assert "\\x1b]0;a title\\x07\\x9b31m" in log
    assert all(character.isprintable() for character in log.replace("\n", ""))
    assert max(map(len, log.splitlines())) < 30_000


def test_what_is_unforeseen_and_cannot_be_told_is_in_the_log(
    in_process: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.state.write_text("no directory")
    assert prolog.main() == 0
    assert "the job cannot be informed" in in_process.log()


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
    (node.directory / "conf.d" / "state.conf").write_text(f"[state]\npath = {node.state}\n")
    node.conf.unlink()
    hook = start(node, 1, "container:/x.sif")
    hook.communicate(timeout=60)
    assert hook.returncode == 0
    failed(node, 1, node.task(1), "ConfigError", f"{node.conf} cannot be read")


def test_a_file_where_the_cache_should_be(node: Node) -> None:
    node.cache.touch()
    refused(node, 1, "container:/x.sif", "CacheUnusable", f"{node.cache}", "directory")
    assert node.record(1)["class"] == "node"


def test_a_file_where_a_directory_of_the_cache_should_be(node: Node) -> None:
    node.cache.mkdir()
    (node.cache / "locks").touch()
    refused(node, 1, "container:/x.sif", "CacheUnusable", f"{node.cache}/locks is not a directory")


def test_a_link_where_a_directory_of_the_cache_should_be(node: Node, tmp_path: Path) -> None:
    node.cache.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (node.cache / "images").symlink_to(tmp_path / "elsewhere")
    refused(node, 1, "container:/x.sif", "CacheUnusable", f"{node.cache}/images is not a directory")


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
@pytest.mark.parametrize(
    ("error", "disk", "code"),
    [
        (CacheUnusable("it cannot be used"), "ro", prolog.DRAIN),
        (CacheUnusable("it cannot be used"), "full", 0),
        (CacheUnusable("it cannot be used"), "", 0),  # as somebody says, and the disk does not
        (NoRoom("it is full"), "full", 0),
        # Of one reference, which any user can write.
        (MissingTool("the Python package botocore is not installed"), "ro", 0),
        (NodeError("no such account"), "ro", 0),
        (ConfigError("a misspelling"), "ro", 0),
    ],
)
def test_what_drains_where_the_site_wants_it(
    in_process: Node, monkeypatch: pytest.MonkeyPatch, error: HpcimgError, disk: str, code: int
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    in_process.configure("[policy]\non_node_fault = drain\n")
    monkeypatch.setattr(stage, "stage", fails)
    cache = in_process.cache
    cache.mkdir()
    with mounted(cache, "mode=0755"):
        directories.prepare(Layout(str(cache), str(in_process.state)))
        monkeypatch.setattr(node_cache, "open_cache", node_cache.cache_of)
        if disk == "full":
            with pytest.raises(OSError, match="No space"):
                (cache / "filler").write_bytes(bytes(2 << 20))
        elif disk:
            subprocess.run(["mount", "-o", f"remount,{disk}", str(cache)], check=True)
        assert prolog.main() == code
    assert in_process.task(1).code == 1


@AS_ROOT
def test_tmp_on_another_file_system(node: Node, url: str, sif: bytes) -> None:
    (node.cache / "tmp").mkdir(parents=True)
    with mounted(node.cache / "tmp", "mode=0700"):
        refused(node, 1, f"container:{url}", "CacheUnusable", "is on another file system than")
    staged(node, 2, f"container:{url}", sif)


def test_directories_are_made_for_others_to_read_whatever_the_umask(
    node: Node, url: str, sif: bytes
) -> None:
    before = os.umask(0o077)
    try:
        assert node.hpcimg("stage", url).returncode == 0
    finally:
        os.umask(before)
    [path] = node.images()
    for directory in (node.cache, node.state, path.parent):
        assert directory.stat().st_mode & 0o777 == 0o755
    staged(node, 1, f"container:{url}", sif, how="hit")
