"""Failures of the site tier: lease holders that are killed or stopped, file systems that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.disk import CannotMount, Disk, small_disk
from tests.integration.checks import finish, got, refused, staged
from tests.parts import hungmount
from tests.parts.daemon import wait_until
from tests.parts.images import make_sif
from tests.parts.processes import descendants
from tests.parts.sitetier import Cluster, events, via
from tests.parts.webfaults import Status
from tests.parts.webserver import WebServer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose tier it is")
LEASE_S = 2.0


@pytest.fixture
def cluster(tmp_path: Path, shared: Path) -> Cluster:
    return Cluster(tmp_path, shared, f"lease = {LEASE_S:.0f}s\n", nodes=2)


@pytest.fixture
def sif(tmp_path: Path) -> bytes:
    return make_sif(tmp_path / "x.sif", {"x": b"x"}, size_bytes=3 << 20).read_bytes()


def signalled(prolog: subprocess.Popen[str], number: int) -> None:
    for pid in [prolog.pid, *descendants(prolog.pid)]:
        os.kill(pid, number)


@pytest.mark.parametrize("all_of_it", [True, False])
def test_a_holder_that_is_stopped_is_taken_over_within_the_lease(
    cluster: Cluster, web: WebServer, url: str, sif: bytes, all_of_it: bool
) -> None:
    first, second = cluster.nodes
    with web.hold("/x.sif", after_bytes=1 << 20) as hold:
        late = first.start_prolog(1, f"container:{url}")
        hold.wait_reached()
        stopped = [late.pid, *descendants(late.pid)] if all_of_it else keeping(late)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        hold.release()
        began = time.monotonic()
        staged(second, 1, f"container:{url}", sif)
        # Other nodes notice if the lease's process is stopped; that process notices if Prolog is.
        assert time.monotonic() - began < 3 * LEASE_S + 40  # on a busy machine
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        finish(late)
    got(first, 1, first.task(1), sif)
    assert web.count() == 2
    assert len(cluster.images()) == 1


def keeping(prolog: subprocess.Popen[str]) -> list[int]:
    """Return Prolog's processes without the one that keeps the lease."""
    found = []
    for pid in [prolog.pid, *descendants(prolog.pid)]:
        names = os.listdir(f"/proc/{pid}/task")
        if len(names) == 1:  # the lease is renewed by a thread
            found.append(pid)
    return found


def test_a_holder_that_is_killed(cluster: Cluster, web: WebServer, url: str, sif: bytes) -> None:
    first, second = cluster.nodes
    with web.hold("/x.sif", after_bytes=1 << 20) as hold:
        late = first.start_prolog(1, f"container:{url}")
        hold.wait_reached()
        waits = second.start_prolog(1, f"container:{url}")
        wait_until(lambda: any(second.state.glob("inflight/*")), what="it")
        signalled(late, signal.SIGKILL)
        late.communicate()
        hold.release()
        finish(waits)
    got(second, 1, second.task(1), sif)
    assert web.count() == 2


def test_who_is_waited_for_in_vain(cluster: Cluster, web: WebServer, url: str, sif: bytes) -> None:
    first, second = cluster.nodes
    cluster.configure(second, f"lease = {LEASE_S:.0f}s\nwait = 1s\n")
    with web.hold("/x.sif", after_bytes=1 << 20) as hold:
        late = first.start_prolog(1, f"container:{url}")
        hold.wait_reached()
        other = second.start_prolog(1, f"container:{url}")
        web.wait_count(2)
        hold.release()
        finish(other)
        finish(late)
    assert len(events(second, "site_busy")) == 1
    assert via(second) == ["origin"]


def test_a_file_system_that_does_not_answer(
    tmp_path: Path, open_directory: Path, url: str, sif: bytes
) -> None:
    with ExitStack() as stack:
        try:
            mount = stack.enter_context(hungmount.mounted(open_directory, 0, 0))
        except OSError as error:
            pytest.skip(f"no FUSE here: {error}")
        cluster = Cluster(tmp_path, mount, nodes=1)
        [node] = cluster.nodes
        cluster.configure(node, "[stage]\nconnect_timeout = 1s\n")
        began = time.monotonic()
        staged(node, 1, f"container:{url}", sif)
        assert time.monotonic() - began < 60  # of a deadline of 540
        assert len(events(node, "site_failed")) == 1
        assert "did not answer" in events(node, "site_failed")[0]["message"]
        # The next job does not wait for it again.
        refused(node, 2, f"container:{url}.no", "NotFound")
        assert len(events(node, "site_failed")) == 1


@pytest.fixture
def disk(open_directory: Path) -> Iterator[Disk]:
    try:
        with small_disk(open_directory / "disk", size="16M") as disk:
            (disk.path / "site").mkdir(mode=0o755)
            yield disk
    except CannotMount as error:
        pytest.skip(str(error))


@pytest.fixture
def on_disk(tmp_path: Path, disk: Disk) -> Cluster:
    return Cluster(tmp_path, disk.path / "site", nodes=3)


def test_a_full_file_system(on_disk: Cluster, disk: Disk, url: str, sif: bytes) -> None:
    for node in on_disk.nodes[:1]:
        other = disk.fill()
        staged(node, 1, f"container:{url}", sif)
        other.unlink()
    assert on_disk.images() == []
    assert on_disk.leftovers() == []
    assert len(events(on_disk.nodes[0], "site_failed")) == 1
    staged(on_disk.nodes[1], 1, f"container:{url}", sif)
    assert len(on_disk.images()) == 1


def test_a_file_system_that_is_read_only(
    on_disk: Cluster, disk: Disk, web: WebServer, url: str, sif: bytes
) -> None:
    first, second, third = on_disk.nodes
    staged(first, 1, f"container:{url}", sif)
    disk.remount("ro")
    try:
        # What is there can be read, and what is not is fetched.
        staged(second, 1, f"container:{url}", sif)
        assert via(second) == ["site"]
        other = make_sif(second.directory / "y.sif", {"y": b"y"}).read_bytes()
        staged(second, 2, f"container:{web.put('/y.sif', other)}", other)
        assert via(second) == ["site", "origin"]
        # It can still be read.
        staged(third, 1, f"container:{web.url('/y.sif')}", other)
        staged(third, 2, f"container:{url}", sif)
        assert via(third) == ["origin", "site"]
    finally:
        disk.remount("rw")


def test_a_server_that_asks_one_node_to_wait_hears_of_no_other(
    cluster: Cluster, web: WebServer, url: str, sif: bytes
) -> None:
    first, second = cluster.nodes
    for node in cluster.nodes:
        cluster.configure(node, "[stage]\ndeadline = 20s\n")
    web.script("/x.sif", [Status(429, "600")] * 100)
    refused(first, 1, f"container:{url}", "Unreachable")
    asked = web.count()
    refused(second, 1, f"container:{url}", "Unreachable", "Another node got this error")
    assert web.count() == asked


def test_a_registry_that_asks_to_wait_is_left_alone_for_other_images_too(
    cluster: Cluster, web: WebServer
) -> None:
    first, second = cluster.nodes
    host = web.url().removeprefix("http://")
    insecure = f"[registry {host}]\ninsecure = yes\n"
    cluster.configure(first, f"[stage]\ndeadline = 14s\n{insecure}")
    cluster.configure(second, f"[stage]\ndeadline = 90s\n{insecure}")
    web.script("/v2/lab/x/manifests/1", [Status(429, "15")] * 100)
    refused(first, 1, f"container:oras://{host}/lab/x:1", "Unreachable")
    asked = web.count()
    # It waits as the registry wished, and asks then.
    refused(second, 1, f"container:oras://{host}/lab/y:1", "NotFound")
    [told] = cluster.shared.glob("v*/failures/host-*")
    assert time.time() - json.loads(told.read_text())["time"] >= 15
    assert web.count() > asked


def test_a_web_server_that_asks_to_wait_for_one_image_has_others(
    cluster: Cluster, web: WebServer, url: str, sif: bytes
) -> None:
    """One user's web page must not affect another user's image."""
    first, second = cluster.nodes
    cluster.configure(first, "[stage]\ndeadline = 20s\n")
    web.script("/other.sif", [Status(429, "600")] * 100)
    refused(first, 1, f"container:{web.url('/other.sif')}", "Unreachable")
    staged(second, 1, f"container:{url}", sif)


def test_two_clusters_and_two_releases_share_a_directory(
    cluster: Cluster, web: WebServer, url: str, sif: bytes
) -> None:
    later = cluster.shared / "v2-x86_64"
    later.mkdir(mode=0o700)
    (later / "refs").write_text("another form")
    for node in cluster.nodes:
        staged(node, 1, f"container:{url}", sif)
    assert web.count() == 1
    assert (later / "refs").read_text() == "another form"


def test_nodes_that_disagree_about_the_lease_fetch_for_themselves(
    cluster: Cluster, web: WebServer, url: str, sif: bytes
) -> None:
    first, second = cluster.nodes
    cluster.configure(second, "lease = 30s\n")
    with web.hold("/x.sif", after_bytes=1 << 20) as hold:
        late = first.start_prolog(1, f"container:{url}")
        hold.wait_reached()
        other = second.start_prolog(1, f"container:{url}")
        web.wait_count(2)
        hold.release()
        finish(other)
        finish(late)
    assert "must agree on lease_duration" in second.log()


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_off(
    cluster: Cluster, web: WebServer, url: str, sif: bytes, hours: int
) -> None:
    """For the second node, the first one's record is from the past or from the future."""
    first, second = cluster.nodes
    staged(first, 1, f"container:{url}", sif)
    [path] = cluster.shared.glob("v*/refs/*")
    fields = cluster.records()[0]
    path.write_text(json.dumps({**fields, "resolved": fields["resolved"] + hours * 3600}))
    staged(second, 1, f"container:{url}", sif)
    # The server is asked whether it has changed, and sends nothing.
    assert via(second) == ["site"]
