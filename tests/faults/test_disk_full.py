"""The disk of the cache is small, full, read-only or broken: a real one, of some MiB."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.disk import Disk
from tests.faults.invariants import check_images, check_no_leftovers, check_staged
from tests.parts.daemon import TIMEOUT_S, wait_until
from tests.parts.images import make_sif
from tests.parts.node import Node, Task
from tests.parts.webfaults import Chunked, Endless, Slow, Status, Truncate
from tests.parts.webserver import WebServer

MIB = 1 << 20


def put(web: WebServer, directory: Path, name: str, size_bytes: int) -> tuple[str, bytes]:
    """Serve an image; return the comment that requests it, and its bytes."""
    data = make_sif(directory / name, {"n": b"x"}, size_bytes=size_bytes).read_bytes()
    return f"container:{web.put(f'/{name}', data)}", data


def check_failed(node: Node, job: int, kind: str, *words: str) -> None:
    """Check that the job got these words, Prolog exited with 0, and nothing unfinished is left."""
    task = node.task(job)
    assert task.code == 1
    assert node.record(job)["class"] == kind, task.printed
    for word in words:
        assert word in task.printed
    check_images(node)
    check_no_leftovers(node)


def check_works(node: Node, web: WebServer, directory: Path, job: int) -> Task:
    """Check that the next job gets its image."""
    comment, data = put(web, directory, f"after-{job}.sif", MIB)
    node.prolog(job, comment)
    check_staged(node, job, data)
    check_no_leftovers(node)
    return node.task(job)


def test_larger_than_the_whole_cache(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    comment, data = put(web, tmp_path, "x.sif", 30 * MIB)
    node.prolog(1, comment)
    check_failed(node, 1, "user", "too large for this cache")
    # Only what was on the way when it was refused.
    assert web.requests(path="/x.sif")[0].sent_bytes < len(data) / 2
    check_works(node, web, tmp_path, 2)


def test_larger_than_the_whole_cache_unannounced(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    comment, _ = put(web, tmp_path, "x.sif", 30 * MIB)
    web.script("/x.sif", [Chunked()])
    node.prolog(1, comment)
    check_failed(node, 1, "user", "too large for this cache")
    check_works(node, web, tmp_path, 2)


def test_smaller_than_the_disk_but_not_than_the_cache(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    """It arrives completely before any check, since no size was announced."""
    node.configure("[cache]\nmax_size = 4M\n")
    comment, _ = put(web, tmp_path, "x.sif", 6 * MIB)
    web.script("/x.sif", [Chunked()])
    node.prolog(1, comment)
    check_failed(node, 1, "user", "too large for this cache")
    check_works(node, web, tmp_path, 2)


def test_two_at_once_do_not_count_on_the_same_room(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    node.configure("[cache]\nmax_size = 12M\n")
    first, first_data = put(web, tmp_path, "first.sif", 7 * MIB)
    second, second_data = put(web, tmp_path, "second.sif", 7 * MIB)
    web.script("/first.sif", [Slow(3 * MIB)])
    hook = node.start_prolog(1, first)
    wait_until(lambda: arrived(node) > MIB, what="a part of the first image")
    node.prolog(2, second)
    assert hook.communicate(timeout=TIMEOUT_S)[0] == ""
    check_staged(node, 1, first_data)
    check_failed(node, 2, "transient", "there is no room on this node")
    for job in (1, 2):
        node.epilog(job)
    node.prolog(3, second)
    check_staged(node, 3, second_data)


def test_room_stays_taken_while_the_next_try_is_waited_for(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    node.configure("[cache]\nmax_size = 12M\n")
    first, first_data = put(web, tmp_path, "first.sif", 7 * MIB)
    second, _ = put(web, tmp_path, "second.sif", 7 * MIB)
    web.script("/first.sif", [Truncate(2 * MIB), Status(503, retry_after="2")])
    hook = node.start_prolog(1, first)
    web.wait_count(2)
    node.prolog(2, second)
    assert hook.communicate(timeout=TIMEOUT_S)[0] == ""
    check_staged(node, 1, first_data)
    check_failed(node, 2, "transient", "there is no room on this node")


def test_what_begins_anew_does_not_stand_in_its_own_way(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    """It breaks off, and the next attempt finds another file: there is room for only one."""
    node.configure("[cache]\nmax_size = 12M\n")
    old, new = (make_sif(tmp_path / name, {name: b"x"}, size_bytes=7 * MIB) for name in "ab")
    comment = f"container:{web.put('/x.sif', old.read_bytes(), etag='1')}"
    web.script("/x.sif", [Truncate(6 * MIB)])
    hook = node.start_prolog(1, comment)
    web.wait_count(1)
    web.put("/x.sif", new.read_bytes(), etag="2")
    assert hook.communicate(timeout=TIMEOUT_S)[0] == ""
    check_staged(node, 1, new.read_bytes())


def arrived(node: Node) -> int:
    """Return how many bytes of downloads in progress are known to have arrived."""
    return sum(work["bytes"] for work in node.hpcimg_json("status")["staging"])


def test_an_endless_download(node: Node, disk: Disk, web: WebServer, tmp_path: Path) -> None:
    node.configure("[cache]\nmax_size = 1G\n")  # more than the disk has: that is what it meets
    comment, _ = put(web, tmp_path, "x.sif", MIB)
    web.script("/x.sif", [Endless()])
    node.prolog(1, comment)
    check_failed(node, 1, "transient", "the disk of this node filled up")
    check_works(node, web, tmp_path, 2)


def test_the_floor_is_kept_for_others(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    node.configure("[cache]\nmin_free = 14M\n")
    assert disk.free_bytes() > 16 * MIB
    comment, _ = put(web, tmp_path, "x.sif", 8 * MIB)
    node.prolog(1, comment)
    check_failed(node, 1, "transient", "no room", "0 eligible")
    check_works(node, web, tmp_path, 2)
    assert disk.free_bytes() > 14 * MIB


def test_the_floor_is_one_of_inodes_too(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    """If evicting all unused images would not free enough, none is evicted."""
    node.configure("[cache]\nmin_free = 50%\n")
    kept = check_works(node, web, tmp_path, 1).image
    node.epilog(1)
    others = disk.path / "others"
    others.mkdir()
    for number in range(300):
        (others / str(number)).touch()
    comment, _ = put(web, tmp_path, "x.sif", MIB)
    node.prolog(2, comment)
    check_failed(node, 2, "transient", "no room", "images (by count) would have to be")
    assert kept in node.images()
    assert "inodes are free on its disk" in node.hpcimg("doctor", "--node").stdout
    for path in others.iterdir():
        path.unlink()
    check_works(node, web, tmp_path, 3)


def test_least_recently_used_images_make_room(
    node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    for job in (1, 2, 3):
        comment, _ = put(web, tmp_path, f"{job}.sif", 5 * MIB)
        assert node.stage(job, comment).code == 0
    kept = node.task(2).image
    for job in (1, 3):
        node.epilog(job)
    comment, data = put(web, tmp_path, "x.sif", 7 * MIB)
    node.prolog(4, comment)
    image = check_staged(node, 4, data)
    assert kept in node.images()
    assert image in node.images()
    assert len(node.images()) < 4


@pytest.mark.parametrize("announced", [True, False])
def test_filled_by_others_half_way(
    announced: bool, node: Node, disk: Disk, web: WebServer, tmp_path: Path
) -> None:
    comment, data = put(web, tmp_path, "x.sif", 8 * MIB)
    web.script("/x.sif", [] if announced else [Chunked()])
    with web.hold("/x.sif", after_bytes=2 * MIB) as hold:
        hook = node.start_prolog(1, comment)
        hold.wait_reached()
        others = disk.fill()
        hold.release()
        assert hook.communicate(timeout=TIMEOUT_S)[0] == ""
    assert hook.returncode == 0
    check_failed(node, 1, "transient", "the disk of this node filled up")
    others.unlink()
    node.prolog(2, comment)
    check_staged(node, 2, data)


def test_full_before(node: Node, disk: Disk, web: WebServer, tmp_path: Path) -> None:
    """A warm image still serves its jobs, another finds no room."""
    check_works(node, web, tmp_path, 1)
    others = disk.fill()
    comment = f"container:{web.url('/after-1.sif')}"
    node.prolog(2, comment)
    check_staged(node, 2, (tmp_path / "after-1.sif").read_bytes())
    cold, _ = put(web, tmp_path, "x.sif", 2 * MIB)
    node.prolog(3, cold)
    check_failed(node, 3, "transient", "no room", "in use by 2 jobs")
    for job in (1, 2, 3):
        node.epilog(job)
    others.unlink()
    check_works(node, web, tmp_path, 4)


def test_out_of_inodes(node: Node, disk: Disk, web: WebServer, tmp_path: Path) -> None:
    check_works(node, web, tmp_path, 1)
    others = disk.use_up_inodes()
    comment, data = put(web, tmp_path, "x.sif", MIB)
    node.prolog(2, comment)
    check_failed(node, 2, "transient", "No space left on device")
    for path in others.iterdir():
        path.unlink()
    node.prolog(3, comment)
    check_staged(node, 3, data)


def test_read_only(node: Node, disk: Disk, web: WebServer, tmp_path: Path) -> None:
    check_works(node, web, tmp_path, 1)
    disk.remount("ro")
    comment, _ = put(web, tmp_path, "x.sif", MIB)
    node.prolog(2, comment)
    check_failed(node, 2, "node", "not writable")
    for job in (1, 2):
        node.epilog(job)
    disk.remount("rw")
    check_works(node, web, tmp_path, 3)


def test_broken_half_way(node: Node, disk: Disk, web: WebServer, tmp_path: Path) -> None:
    """ext4 finds an error in itself during a download and becomes read-only."""
    comment, data = put(web, tmp_path, "x.sif", 8 * MIB)
    with web.hold("/x.sif", after_bytes=2 * MIB) as hold:
        hook = node.start_prolog(1, comment)
        hold.wait_reached()
        disk.break_down()
        hold.release()
        assert hook.communicate(timeout=TIMEOUT_S)[0] == ""
    assert hook.returncode == 0
    assert node.task(1).code == 1
    assert node.record(1)["class"] == "node"
    node.epilog(1)
    assert node.images() == []
    disk.repair()
    node.prolog(2, comment)
    check_staged(node, 2, data)
    check_no_leftovers(node)
