"""The nodes of one job share an image, with and without failures.

Each node is a network namespace with a cache of its own, and runs the real hooks with the
real munge and libtorrent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from hpcimg.peers import order
from hpcimg.reference import parse
from tests.parts.daemon import wait_until
from tests.parts.lab import Lab, LabNode
from tests.parts.webfaults import Status

pytest.importorskip("libtorrent", reason="not installed here: the Python package libtorrent")
pytestmark = pytest.mark.skipif(bool(Lab.missing()), reason=Lab.missing() or "-")
_IMAGE = 3_000_000
_SETTINGS = """
[peers]
use = yes
wait = 20s
networks = {network}
munge_socket = {munge}
[stage]
tag_ttl = 1s
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Four nodes whose links nothing slows down."""
    with Lab(4, settings=_SETTINGS) as made:
        yield made


@pytest.fixture
def url(lab: Lab) -> str:
    """The address of a new image."""
    return lab.put(size_bytes=_IMAGE)


def content(lab: Lab, url: str) -> bytes:
    """Return what is at an address."""
    return (lab.directory / url.rpartition("/")[2]).read_bytes()


def check(lab: Lab, job: int, url: str, nodes: list[LabNode]) -> None:
    """Check that the job has exactly this image on the nodes, and that nothing is left over."""
    for node in nodes:
        task = node.task(job)
        assert task.code == 0, (task.printed, node.log())
        assert task.image.read_bytes() == content(lab, url)
        assert node.leftovers() == []
        assert f"{job}: ERROR" not in node.log()
    assert lab.swarm_processes() == []


def leaders(lab: Lab, job: int, url: str) -> list[LabNode]:
    """Return the nodes in the order in which they lead."""
    kind = f"{parse(url).address} squashfs "
    wanted = hashlib.sha256(kind.encode()).hexdigest()
    names = order.of_leaders(str(job), wanted, [node.name for node in lab.nodes])
    return [lab.nodes[int(name[1:]) - 1] for name in names]


def warnings(node: LabNode, job: int) -> list[str]:
    """Return a node's warnings."""
    return [line for line in node.log().splitlines() if f"job {job}: WARNING" in line]


def peers_failed(node: LabNode) -> int:
    """Return how often a node has had to go on without its peers."""
    return int(node.hpcimg_json("status")["counts"].get("peers_failed", 0))


def test_sixteen_nodes_take_one_image_from_the_origin() -> None:
    size = 2_000_000
    # Sixteen of them begin on the processors of one host.
    settings = _SETTINGS.replace("wait = 20s", "wait = 40s")
    with Lab(16, node_rate=32, origin_rate=8, settings=settings) as lab:
        alone = lab.run(1, lab.put(size_bytes=size), lab.nodes[:1])
        before, url = lab.origin_sent(), lab.put(size_bytes=size)
        sent = [node.sent() for node in lab.nodes]
        run = lab.run(2, url)
        assert lab.origin_sent() - before <= 1.05 * size
        # No link had to carry it sixteen times, nor the time that this takes.
        assert max(n.sent() - s for n, s in zip(lab.nodes, sent, strict=True)) < 6 * size
        assert run.median_s < 16 / 2 * size * 8 / 8e6 + alone.median_s
        check(lab, 2, url, lab.nodes)
        assert [warning for node in lab.nodes for warning in warnings(node, 2)] == []


@pytest.fixture
def trusting(lab: Lab) -> Iterator[None]:
    """Nodes that check a tag once an hour."""
    for node in lab.nodes:
        node.configure(lab.settings.replace("tag_ttl = 1s", "tag_ttl = 1h"))
    yield
    for node in lab.nodes:
        node.configure(lab.settings)


@pytest.mark.usefixtures("trusting")
def test_nodes_with_different_versions_of_a_tag_run_one(lab: Lab, url: str) -> None:
    first, second, *_ = lab.nodes
    lab.run(11, url, [first])
    newer, name = lab.put(size_bytes=_IMAGE), url.rpartition("/")[2]
    (lab.directory / name).write_bytes(content(lab, newer))
    lab.web.put(f"/{name}", content(lab, newer), etag='"newer"')
    lab.run(12, url, [second])
    asked = lab.web.count(path=f"/{name}")
    lab.run(13, url)
    check(lab, 13, url, lab.nodes)
    assert lab.web.count(path=f"/{name}") == asked + 1


@pytest.mark.usefixtures("trusting")
def test_an_origin_that_is_down_leaves_them_with_the_leaders_version(lab: Lab, url: str) -> None:
    lab.run(11, url)
    name = url.rpartition("/")[2]
    others = leaders(lab, 12, url)[1:]
    lab.web.put(f"/{name}", content(lab, lab.put(size_bytes=_IMAGE)), etag='"newer"')
    for node in others:
        shutil.rmtree(node.cache)
        lab.run(11, url, [node])
    lab.web.script(f"/{name}", [Status(503)] * 50)
    lab.run(12, url)
    check(lab, 12, url, lab.nodes)


def test_a_leader_that_is_killed_half_way_is_followed_by_the_next(lab: Lab, url: str) -> None:
    job = 10
    leader, *others = leaders(lab, job, url)
    before = lab.origin_sent()
    with lab.web.hold(f"/{url.rpartition('/')[2]}", after_bytes=_IMAGE // 2) as hold:
        prologs = lab.start(job, url)
        hold.wait_reached()
        os.killpg(prologs.pop(leader.name).pid, signal.SIGKILL)
        hold.wait_reached()  # the next one
        hold.release()
        lab.wait(prologs, began=time.monotonic())
    check(lab, job, url, others)
    assert lab.origin_sent() - before <= 2.05 * _IMAGE
    assert content(lab, url) not in [path.read_bytes() for path in leader.images()]


def test_a_leader_that_is_killed_while_it_sends_is_followed_by_the_next(lab: Lab, url: str) -> None:
    """Two of the three others notice when the next one has long had the image."""
    job, wait_s = 15, 10
    leader, *others = leaders(lab, job, url)
    before = lab.origin_sent()
    settings = lab.settings.replace("wait = 20s", f"wait = {wait_s}s")
    with (
        configured(lab, settings),
        lab.web.hold(f"/{url.rpartition('/')[2]}", after_bytes=_IMAGE // 2) as hold,
    ):
        # So slow that it is killed long before the others have it all between them.
        leader.configure(settings.replace("[peers]", "[peers]\nrate = 150K"))
        prologs = lab.start(job, url)
        wait_until(lambda: all(follows(node, job, leader) for node in others), what="a leader")
        time.sleep(wait_s)  # from now on, nobody expects nodes that have yet to start
        hold.release()
        wait_until(lambda: any(arrives(node) for node in others), what="the first bytes")
        with lab.kept_apart([leader, *others[1:]]):
            os.killpg(prologs.pop(leader.name).pid, signal.SIGKILL)
            lab.wait(prologs, began=time.monotonic())
    check(lab, job, url, others)
    sent, said = lab.origin_sent() - before, [warnings(node, job) for node in others]
    assert 1.9 * _IMAGE <= sent <= 2.1 * _IMAGE, said


def test_a_node_that_starts_when_the_others_have_it_gets_it_from_them(lab: Lab, url: str) -> None:
    job = 16
    *others, last = leaders(lab, job, url)
    before = lab.origin_sent()
    with configured(lab, lab.settings.replace("wait = 20s", "wait = 60s")):
        prologs = lab.start(job, url, others, late=[last])
        wait_until(lambda: all(has(node, lab, url) for node in others), what="the image on three")
        prologs |= lab.start(job, url, [last], late=others)
        lab.wait(prologs, began=time.monotonic())
    check(lab, job, url, lab.nodes)
    assert lab.origin_sent() - before <= 1.05 * _IMAGE
    assert [warning for node in lab.nodes for warning in warnings(node, job)] == []


def has(node: LabNode, lab: Lab, url: str) -> bool:
    """Tell whether a node has the image."""
    return content(lab, url) in [path.read_bytes() for path in node.images()]


@contextlib.contextmanager
def configured(lab: Lab, settings: str) -> Iterator[None]:
    """Let all nodes have other settings for a while."""
    for node in lab.nodes:
        node.configure(settings)
    try:
        yield
    finally:
        for node in lab.nodes:
            node.configure(lab.settings)


def follows(node: LabNode, job: int, leader: LabNode) -> bool:
    """Tell whether a node has heard from a job's leader."""
    lines = [line for line in node.log().splitlines() if f" job {job}: " in line]
    return any(line.endswith(f" on {leader.name}") for line in lines)


def arrives(node: LabNode) -> bool:
    """Tell whether a part of an image has come from other nodes."""
    found = [json.loads(path.read_text()) for path in (node.state / "inflight").glob("*.json")]
    return any(work["phase"] == "fetching" and work["bytes"] > 0 for work in found)


def test_a_leader_that_is_cut_off_is_passed_over(lab: Lab, url: str) -> None:
    job = 20
    leader, *others = leaders(lab, job, url)
    with lab.web.hold(f"/{url.rpartition('/')[2]}", after_bytes=_IMAGE // 2) as hold:
        prologs = lab.start(job, url)
        hold.wait_reached()
        with leader.cut_off():
            cut = prologs.pop(leader.name)
            hold.wait_reached()  # the next one
            hold.release()
            lab.wait(prologs, began=time.monotonic())
            check_others = [node.task(job).code for node in others]
        lab.wait({leader.name: cut}, began=time.monotonic())
    assert check_others == [0, 0, 0]
    check(lab, job, url, lab.nodes)


def test_a_leader_that_gets_nowhere_is_passed_over(lab: Lab, url: str) -> None:
    job = 30
    leader, *others = leaders(lab, job, url)
    with (
        configured(lab, f"{lab.settings}patience = 4s\n"),
        lab.web.hold(f"/{url.rpartition('/')[2]}", after_bytes=_IMAGE // 2) as hold,
    ):
        prologs = lab.start(job, url)
        hold.wait_reached()
        hold.wait_reached()
        hold.release()
        lab.wait(prologs, began=time.monotonic())
    check(lab, job, url, lab.nodes)
    assert all(f"on {leader.name}" in node.log() for node in others)


def test_what_is_not_what_the_leader_has_is_fetched_from_the_origin(lab: Lab, url: str) -> None:
    """The leader's disk has changed the image that it has: its pieces are as wrong as the whole."""
    job = 41
    leader, *others = leaders(lab, job, url)
    lab.run(40, url, [leader])
    [image] = [path for path in leader.images() if path.read_bytes() == content(lab, url)]
    with image.open("r+b") as file:
        file.seek(_IMAGE // 2)
        file.write(b"rubbish")
    time.sleep(1.1)  # until the tag is asked for again
    lab.run(job, url)
    check(lab, job, url, others)
    for node in others:
        [warning] = warnings(node, job)
        assert "is not what the leader of the job has" in warning


def test_a_node_without_munge_fetches_for_itself(lab: Lab, url: str) -> None:
    job = 50
    odd, *others = reversed(leaders(lab, job, url))
    settings = lab.settings.replace(str(lab.munge.socket), "/nonexistent")
    odd.configure(settings)
    failed, before = peers_failed(odd), lab.origin_sent()
    try:
        lab.run(job, url)
    finally:
        odd.configure(lab.settings)
    check(lab, job, url, lab.nodes)
    [warning] = warnings(odd, job)
    assert "munged does not answer" in warning
    assert peers_failed(odd) == failed + 1
    assert lab.origin_sent() - before <= 2.1 * _IMAGE
    assert [warning for node in others for warning in warnings(node, job)] == []


def test_who_is_not_root_gets_no_answer(lab: Lab, url: str) -> None:
    job = 60
    leader = leaders(lab, job, url)[0]
    node, other = lab.nodes[:2]
    told = f'hpcimg-peers 1\n["ask", "{job}", "", "{other.name}", "{leader.name}", "1", "", null]'
    of_user = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "munge", f"--socket={lab.munge.socket}",
         "--restrict-uid=0"],
        input=told, text=True, capture_output=True, check=True,
    ).stdout.strip()  # fmt: skip
    with lab.web.hold(f"/{url.rpartition('/')[2]}", after_bytes=_IMAGE // 2) as hold:
        prologs = lab.start(job, url)
        hold.wait_reached()
        for question in (f"ask {of_user}", "ask nothing", "hello", "\0" * 100, "x" * 200_000):
            with lab.inside(node.namespace):
                connection = socket.create_connection(
                    (leader.address, order.question_port(8478, str(job))), timeout=10
                )
            with connection:
                connection.sendall(f"{question}\n".encode())
                try:
                    assert connection.recv(100) == b""
                except ConnectionResetError:
                    pass
        hold.release()
        lab.wait(prologs, began=time.monotonic())
    check(lab, job, url, lab.nodes)


def test_nodes_that_differ_in_their_settings_are_no_peers(lab: Lab, url: str) -> None:
    job = 70
    odd = lab.nodes[0]
    odd.configure(lab.settings + "format = sif\n")
    before = lab.origin_sent()
    try:
        lab.run(job, url)
    finally:
        odd.configure(lab.settings)
    check(lab, job, url, lab.nodes)
    assert 1.9 * _IMAGE <= lab.origin_sent() - before <= 2.1 * _IMAGE


def test_a_job_of_few_nodes_has_no_peers(lab: Lab, url: str) -> None:
    before = lab.origin_sent()
    lab.run(80, url, lab.nodes[:3])
    check(lab, 80, url, lab.nodes[:3])
    assert lab.origin_sent() - before >= 3 * _IMAGE


def test_a_prolog_that_is_killed_leaves_what_the_next_one_sweeps(lab: Lab, url: str) -> None:
    job = 90
    follower = leaders(lab, job, url)[1]
    with lab.web.hold(f"/{url.rpartition('/')[2]}", after_bytes=_IMAGE // 2) as hold:
        prologs = lab.start(job, url)
        hold.wait_reached()
        wait_until(lambda: f"job {job}: INFO" in follower.log(), what="a follower")
        os.killpg(prologs.pop(follower.name).pid, signal.SIGKILL)
        hold.release()
        lab.wait(prologs, began=time.monotonic())
    lab.run(91, url, [follower])
    check(lab, 91, url, [follower])


def test_a_user_who_has_the_ports_of_the_leader_is_no_leader(lab: Lab, url: str) -> None:
    job = 95
    leader, *others = leaders(lab, job, url)
    before = lab.origin_sent()
    port = order.question_port(8478, str(job))
    with lab.inside(leader.namespace):
        listener = socket.create_server((leader.address, port))
    with listener:
        answering = threading.Thread(target=say_nonsense, args=(listener,))
        answering.start()
        lab.run(job, url)
        listener.shutdown(socket.SHUT_RDWR)
        answering.join()
    check(lab, job, url, lab.nodes)
    assert lab.origin_sent() - before <= 2.1 * _IMAGE
    [warning] = warnings(leader, job)
    assert "its control port is in use" in warning
    assert [warning for node in others for warning in warnings(node, job)] == []


def say_nonsense(listener: socket.socket) -> None:
    """Answer each question as one who cannot know what to say, until the listener ends."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                assert connection.recv(4) == b"ask "
                connection.sendall(b"hello MUNGE:nothing:\nelecting\nimage a b\n")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass


def test_the_leader_takes_it_from_the_site_tier(lab: Lab, url: str) -> None:
    site = lab.directory / "site"
    site.mkdir(mode=0o755)
    with configured(lab, f"{lab.settings}[site]\npath = {site}\n"):
        before = lab.origin_sent()
        lab.run(101, url, lab.nodes[:1])
        sent = lab.origin_sent()
        assert sent - before <= 1.05 * _IMAGE
        lab.nodes[0].hpcimg("rm", url)
        lab.run(102, url)
    check(lab, 102, url, lab.nodes)
    assert lab.origin_sent() - sent <= 0.05 * _IMAGE
