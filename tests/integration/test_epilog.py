"""Epilog: it drops the job's leases, and evicts least recently used images if necessary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg import processes
from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import EPILOG, Node
from tests.parts.webserver import WebServer

MIB = 1 << 20


class Shelf:
    """Images of one MiB each, by name."""

    def __init__(self, node: Node, web: WebServer, make_sif: MakeSif) -> None:
        self._node = node
        self._web = web
        self._make_sif = make_sif
        self._made: dict[str, bytes] = {}

    def comment(self, name: str) -> str:
        """Serve an image; return the comment of a job that requests it."""
        if name not in self._made:
            self._made[name] = self._make_sif(size_bytes=MIB)
            self._web.put(f"/{name}.sif", self._made[name])
        return f"container:{self._web.url(f'/{name}.sif')}"

    def stage(self, job: int, name: str, *, how: str = "") -> None:
        """Let a job have an image; then a minute passes."""
        comment = self.comment(name)
        staged(self._node, job, comment, self._made[name], how=how)
        let_pass(self._node, 60)

    def fill(self, names: str) -> None:
        """Have images that no job uses, a minute between the last uses of each two."""
        urls = [self.comment(name).removeprefix("container:") for name in names]
        assert self._node.hpcimg("stage", *urls).returncode == 0
        used = {url: 60 * (len(urls) - number) for number, url in enumerate(urls)}
        for path in self._node.cache.glob("meta/*"):
            [url] = json.loads(path.read_text())["uris"]
            at = path.stat().st_mtime - used[url]
            os.utime(path, (at, at))

    def there(self) -> str:
        """Return the names of the images on the node."""
        content = {path.read_bytes() for path in self._node.images()}
        known = {json.loads(path.read_text())["key"] for path in self._node.cache.glob("meta/*")}
        assert known == {path.stem for path in self._node.images()}
        return "".join(sorted(name for name, data in self._made.items() if data in content))


@pytest.fixture
def shelf(node: Node, web: WebServer, make_sif: MakeSif) -> Shelf:
    return Shelf(node, web, make_sif)


def limit(node: Node, size_mib: float, **more: str) -> None:
    """Set the size of the cache; eviction begins at 90 and ends at 50 percent of it."""
    lines = [f"max_size = {size_mib}M", "high_watermark = 90%", "low_watermark = 50%"]
    lines += [f"{name} = {value}" for name, value in {"min_age": "0", **more}.items()]
    node.configure("\n".join(["[cache]", *lines, ""]))


# Leases


def test_drops_the_leases_of_this_job_alone(node: Node, shelf: Shelf) -> None:
    shelf.stage(1, "a")
    shelf.stage(2, "a", how="hit")
    shelf.stage(12, "b")
    node.epilog(1)
    assert {job for _, job in node.leases()} == {"2", "12"}
    assert not (node.state / "jobs" / "1").exists()
    assert (node.state / "jobs" / "12").exists()
    assert shelf.there() == "ab"
    # Slurm may call it twice.
    node.epilog(1)
    shelf.stage(3, "a", how="hit")


def test_a_job_without_an_image(node: Node) -> None:
    node.epilog(1)
    assert not node.cache.exists()
    assert not node.state.exists()


def test_a_job_whose_prolog_failed(node: Node) -> None:
    refused(node, 1, "container:ubuntu", "BadReference")
    node.epilog(1)
    assert list(node.state.glob("jobs/*")) == []


@pytest.mark.parametrize("job", ["", "x", "../1", "1; rm"])
def test_a_job_id_that_is_none(node: Node, shelf: Shelf, job: str) -> None:
    shelf.stage(1, "a")
    done = subprocess.run(
        [EPILOG], env=node.environment(job), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert {job for _, job in node.leases()} == {"1"}
    assert node.record(1)["state"] == "ready"


def test_a_wrong_configuration_drains_no_node(node: Node, shelf: Shelf) -> None:
    shelf.stage(1, "a")
    node.configure("[cache]\nmax_sice = 1G\n")
    done = subprocess.run(
        [EPILOG], env=node.environment(1), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    # What it knows without the rest is enough for this.
    assert node.leases() == set()


# Room for the next


def test_least_recently_used_goes_first_down_to_the_low_watermark(node: Node, shelf: Shelf) -> None:
    shelf.fill("abcd")
    shelf.stage(5, "a", how="hit")
    assert shelf.there() == "abcd"
    limit(node, 4.2)
    node.epilog(5)
    # Of 4.2 MiB two fit below the low watermark.
    assert shelf.there() == "ad"
    assert "freed 2.0 MiB of 1.9 MiB" in node.log()
    assert node.hpcimg_json("status")["counts"]["evict"] == 2


def test_below_the_high_watermark_nothing_goes(node: Node, shelf: Shelf) -> None:
    limit(node, 4)
    shelf.fill("abc")
    shelf.stage(1, "a", how="hit")
    node.epilog(1)
    assert shelf.there() == "abc"
    assert "freed" not in node.log()


def test_what_jobs_use_stays(node: Node, shelf: Shelf) -> None:
    for job, name in enumerate("abcd", start=1):
        shelf.stage(job, name)
    limit(node, 4.2)
    node.epilog(3)
    assert shelf.there() == "abd"
    assert "1.0 MiB eligible, 3.0 MiB in use by 3 jobs" in node.log()
    # The next one to end makes more room, if it is needed still.
    node.epilog(1)
    assert shelf.there() == "abd"


def test_what_was_used_a_moment_ago_stays(node: Node, shelf: Shelf) -> None:
    shelf.fill("abc")
    shelf.stage(1, "d")
    limit(node, 4.2, min_age="210s")  # a was used four minutes ago, b three, c two, d one
    node.epilog(1)
    assert shelf.there() == "bcd"
    assert "1.0 MiB eligible, 3.0 MiB used a moment ago" in node.log()


def test_what_was_used_in_the_future_does_not_stay_until_then(node: Node, shelf: Shelf) -> None:
    shelf.fill("abcd")
    shelf.stage(1, "a")
    limit(node, 4.2)
    let_pass(node, -86400)
    node.epilog(1)
    assert len(shelf.there()) == 2


@pytest.fixture
def small_disk(node: Node) -> Iterator[Path]:
    """The cache on a file system of 8 MiB of its own."""
    node.cache.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0755", "tmpfs", str(node.cache)]
    if os.geteuid() != 0 or subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield node.cache
    finally:
        subprocess.run(["umount", str(node.cache)], check=True)


def test_the_floor_is_kept_free_for_others(node: Node, shelf: Shelf, small_disk: Path) -> None:
    limit(node, 100)
    shelf.fill("abcd")
    shelf.stage(1, "a", how="hit")
    limit(node, 100, min_free="5.5M")
    # Somebody else fills the disk.
    (small_disk / "else").write_bytes(bytes(MIB))
    node.epilog(1)
    free = os.statvfs(small_disk)
    assert free.f_bavail * free.f_frsize >= 5.5 * MIB
    assert shelf.there() == "a"


# Room for an image that a job waits for


def test_a_job_that_waits_gets_room_at_once(node: Node, shelf: Shelf) -> None:
    limit(node, 3.5, min_age="1h")
    shelf.fill("abc")
    shelf.stage(4, "d", how="fetched")
    # One had to go, though all are young: not more than that.
    assert shelf.there() == "bcd"


def test_a_job_for_which_there_is_no_room(node: Node, shelf: Shelf) -> None:
    limit(node, 3.5)
    for job, name in enumerate("abc", start=1):
        shelf.stage(job, name)
    task = refused(node, 4, shelf.comment("d"), "NoRoom", "there is no room on this node")
    assert "0 eligible, 3.0 MiB in use by 3 jobs" in task.printed
    assert node.record(4)["class"] == "transient"
    assert shelf.there() == "abc"
    node.epilog(2)
    shelf.stage(5, "d")
    assert shelf.there() == "acd"


def test_an_image_that_was_evicted_is_fetched_again(
    node: Node, shelf: Shelf, web: WebServer
) -> None:
    shelf.stage(1, "a")
    shelf.stage(2, "b")
    limit(node, 2)
    node.epilog(1)
    assert shelf.there() == "b"
    shelf.stage(3, "a", how="fetched")
    assert web.count(path="/a.sif") == 2


# What killed work left behind


def test_sweeps_what_nobody_works_on(node: Node, shelf: Shelf) -> None:
    shelf.stage(1, "a")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from hpcimg import processes; print(processes.tag())"
    )
    command = [sys.executable, "-I", "-c", code, str(EPILOG.parents[1])]
    ended = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    alive = processes.tag()
    for directory in (node.cache / "tmp", node.state / "tmp"):
        for name in (f"{ended}.0a.x", f"{alive}.0b.x", "stray"):
            (directory / name).write_bytes(b"half an image")
    for name, process in (("x", ended), ("y", alive)):
        work = {"process": process, "since": 1.0, "uri": "u", "job": "1", "bytes": 0, "total": 0}
        (node.state / "inflight" / f"{name}.json").write_text(json.dumps(work))
    node.epilog(1)
    left = {path.name for path in node.leftovers()}
    assert left == {f"{alive}.0b.x", "y.json"}
    assert node.hpcimg_json("status")["counts"]["sweep"] == 1
