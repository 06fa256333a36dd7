"""Several jobs request the same image: one fetches it, and another one if that one fails."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.integration.checks import failed, finish, got, staged, wait_for_log
from tests.integration.conftest import Start
from tests.parts.daemon import TIMEOUT_S
from tests.parts.node import Node
from tests.parts.webanswer import Answer, Request
from tests.parts.webserver import WebServer


def test_the_second_waits_for_the_first(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    with web.hold("/x.sif", after_bytes=100_000) as hold:
        first = start(node, 1, f"container:{url}")
        hold.wait_reached()
        second = start(node, 2, f"container:{url}")
        wait_for_log(node, f"job 2 waits for {url}, which another job is fetching")
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
        assert "another job on this node was still fetching the same image" in task.printed
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
        second.communicate(timeout=TIMEOUT_S)
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
        first.communicate(timeout=TIMEOUT_S)
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
        first.communicate(timeout=TIMEOUT_S)
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


def test_a_waiter_goes_on_by_itself(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    """The fetching job makes no progress."""
    node.configure("[stage]\npatience = 0.3s\n")
    with web.hold("/x.sif", after_bytes=100_000) as hold:
        first = start(node, 1, f"container:{url}")
        hold.wait_reached()
        second = start(node, 2, f"container:{url}")
        wait_for_log(node, "job 2 waits for", "job 2 stops waiting")
        web.wait_count(2)
        hold.release()
        finish(first)
        finish(second)
    for job in (1, 2):
        got(node, job, node.task(job), sif)


def test_jobs_that_wait_are_shown(start: Start, node: Node, web: WebServer, url: str) -> None:
    with web.hold("/x.sif") as hold:
        first = start(node, 1, f"container:{url}")
        hold.wait_reached()
        second = start(node, 2, f"container:{url}")
        wait_for_log(node, "job 2 waits for")
        [waiting] = node.hpcimg_json("status")["waiting"]
        assert (waiting["job"], waiting["uris"], waiting["for_jobs"]) == ("2", [url], ["1"])
        hold.release()
        finish(first)
        finish(second)
