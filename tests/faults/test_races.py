"""Races between jobs, evictions, cancellations, reboots and changes of the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from hpcimg import processes
from hpcimg.cache import evict
from hpcimg.config import load as config
from hpcimg.node import open_cache
from tests.faults.invariants import check_images, check_no_jobs, check_no_leftovers, check_staged
from tests.integration.checks import wait_for_log
from tests.parts.daemon import TIMEOUT_S
from tests.parts.images import make_sif
from tests.parts.node import Node
from tests.parts.webserver import WebServer

SIZE = 200_000
HOUR = 3600
JOBS = 60 if os.environ.get("HPCIMG_LONG") else 30
# What no job uses has to go, once it is older than min_age.
ROOM_FOR_NONE = "[cache]\nmax_size = 300K\nhigh_watermark = 10%\nlow_watermark = 0%\n"
# Locks its first argument, says so, and waits to be killed.
LOCKER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def make_images(directory: Path, count: int) -> list[Path]:
    return [make_sif(directory / f"{n}.sif", {"n": b"x"}, size_bytes=SIZE) for n in range(count)]


# An image in use is there, from the task prolog to the epilog.


def test_jobs_against_evictors(node: Node, open_directory: Path) -> None:
    """Three jobs at a time, each with one of six images, on a node with room for four."""
    node.configure(ROOM_FOR_NONE.replace("300K", "900K") + "min_age = 0s\n")
    images = make_images(open_directory, 6)
    cache = open_cache(config.load(str(node.conf)))
    told = []

    def run_job(job: int) -> None:
        image = images[job % len(images)]
        node.prolog(job, f"container:{image}")
        if node.task(job).code == 0:
            told.append(job)
            path = check_staged(node, job, image.read_bytes())
            report = evict.trim(cache.layout, cache.limits, time_s=20)
            assert path.stem not in [image.key for image in report.evicted]
            check_staged(node, job, image.read_bytes())
        else:
            # Somebody else was about to evict what would have made room.
            assert node.record(job)["error"] == "NoRoom", node.record(job)
        node.epilog(job)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run_job, range(1, JOBS + 1)))
    assert len(told) > JOBS * 5 / 6
    assert node.hpcimg_json("status")["counts"]["evict"] > JOBS / 3
    check_images(node)
    check_no_leftovers(node)
    check_no_jobs(node)


# Locks


def test_a_lock_file_that_a_killed_process_left(node: Node, web: WebServer, tmp_path: Path) -> None:
    """Its holder is killed while a job waits; before that it was not hpcimg, so nobody knows it."""
    [image] = make_images(tmp_path, 1)
    comment = f"container:{web.put('/x.sif', image.read_bytes())}"
    node.prolog(1, comment)
    node.epilog(1)
    forget_everything_but_locks(node)
    locks = list((node.cache / "locks").iterdir())
    assert len(locks) >= 2
    with held(locks) as holders:
        waiting = node.start_prolog(2, comment)
        wait_for_log(node, "job 2 waits")
        for holder in holders:
            holder.kill()
        assert waiting.communicate(timeout=TIMEOUT_S)[0] == ""
    check_staged(node, 2, image.read_bytes())
    # They are there still, and nobody minds.
    node.prolog(3, comment)
    check_staged(node, 3, image.read_bytes())


@contextmanager
def held(paths: list[Path]) -> Iterator[list[subprocess.Popen[str]]]:
    """Hold a lock on each file, in a separate process."""
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", LOCKER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for path in paths
    ]
    try:
        for holder in holders:
            assert holder.stdout
            assert holder.stdout.readline() == "locked\n"
        yield holders
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def forget_everything_but_locks(node: Node) -> None:
    for path in [*node.images(), *node.cache.glob("meta/*"), *node.cache.glob("refs/*")]:
        path.unlink()
    node.reboot()


# Reboots


def test_a_reboot_in_the_middle(node: Node, web: WebServer, tmp_path: Path) -> None:
    [image] = make_images(tmp_path, 1)
    comment = f"container:{web.put('/x.sif', image.read_bytes())}"
    with web.hold("/x.sif", after_bytes=SIZE // 2) as hold:
        fetching = node.start_prolog(1, comment)
        hold.wait_reached()
        os.killpg(fetching.pid, signal.SIGKILL)
        fetching.communicate(timeout=TIMEOUT_S)
    node.reboot()
    # After a boot pids begin anew: the leftover's may well be in use again.
    [leftover] = (node.cache / "tmp").iterdir()
    pid, started = processes.tag().split("-")[1:]
    leftover.rename(leftover.with_name(f"00000000-{pid}-{started}.x"))
    node.prolog(2, comment)
    check_staged(node, 2, image.read_bytes())
    check_images(node)
    check_no_leftovers(node)
    assert node.hpcimg_json("status")["counts"]["sweep"] == 1


def test_what_a_running_process_works_on_is_not_swept(node: Node, open_directory: Path) -> None:
    [image] = make_images(open_directory, 1)
    node.prolog(1, f"container:{image}")
    ours = node.cache / "tmp" / f"{processes.tag()}.x"
    ours.touch()
    node.prolog(2, f"container:{make_sif(open_directory / 'other.sif', {'n': b'y'})}")
    assert node.leftovers() == [ours]


# Clocks


def test_a_last_use_in_the_future_keeps_no_image_for_ever(node: Node, open_directory: Path) -> None:
    node.configure(ROOM_FOR_NONE + "min_age = 30m\n")
    [image] = make_images(open_directory, 1)
    node.prolog(1, f"container:{image}")
    [meta] = (node.cache / "meta").iterdir()
    set_last_use(meta, time.time() + HOUR)
    node.epilog(1)
    # It was used just now, as far as anybody can tell, and is as old as that from here on.
    assert len(node.images()) == 1
    assert meta.stat().st_mtime <= time.time()
    set_last_use(meta, meta.stat().st_mtime - HOUR)
    assert node.hpcimg_json("gc")["evicted"] == [meta.stem]


def set_last_use(meta: Path, when: float) -> None:
    os.utime(meta, (when, when))
