"""File systems and disks that never answer: Prolog ends in time, and the node stays in service."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcimg.cache import hot, leader
from hpcimg.cache.paths import Layout
from hpcimg.slurm import prolog, warm, watch
from tests.integration.checks import failed, refused, staged
from tests.parts import hungmount
from tests.parts.daemon import wait_until
from tests.parts.images import make_sif
from tests.parts.node import Node
from tests.parts.processes import gone

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act for a user")
GAMES, MAIL = 5, 8
IN_TIME_S = 10.0  # to end what can be ended, on a slow machine


@AS_ROOT
def test_a_path_on_a_users_file_system(node: Node, open_directory: Path) -> None:
    node.uid = GAMES
    node.configure("[stage]\ndeadline = 3s\n[policy]\non_node_fault = drain\n")
    with ExitStack() as stack:
        try:
            mount = stack.enter_context(hungmount.mounted(open_directory, GAMES))
        except OSError as error:
            pytest.skip(f"no FUSE here: {error}")
        began = time.monotonic()
        refused(node, 1, f"container:{mount}/x.sif", "DeadlinePassed", "cannot be ended")
        assert time.monotonic() - began < 3 + 5 + IN_TIME_S
        # Another user's job on the node does not find it in its way.
        node.uid = MAIL
        other = make_sif(open_directory / "y.sif", {"y": b"y"})
        staged(node, 2, f"container:{other}", other.read_bytes())
    assert len(node.images()) == 1


def test_many_slow_looks_are_left_to_the_way_that_has_a_deadline(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may answer for each of a job's images just before it is given up."""
    monkeypatch.setenv("HPCIMG_CONF", str(node.conf))
    monkeypatch.setattr(warm, "_QUICK_S", 0.2)
    looks = []

    def slow(_: Layout, text: str, **__: object) -> hot.Hit:
        looks.append(text)
        time.sleep(0.15)
        return hot.Hit("sha256-0", "/x.sif", text)

    monkeypatch.setattr(hot, "lookup", slow)
    (node.state / "jobs").mkdir(parents=True)
    words = [f"container:/{number}.sif" for number in range(32)]
    assert warm.prolog(node.environment(1, " ".join(words))) == warm.LONG_WAY
    assert len(looks) < 5
    assert warm.prolog(node.environment(2, words[0])) == 0


def test_who_takes_too_long_is_ended() -> None:
    began = time.monotonic()
    assert watch.within(lambda: 0.2, lambda: time.sleep(60) or 0) is None
    assert time.monotonic() - began < IN_TIME_S


@pytest.mark.parametrize("code", [0, prolog.DRAIN])
def test_who_ends_in_time_is_heard(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        os.write(2, b"it is done")
        return code

    assert watch.within(lambda: 60.0, work) == code
    assert "it is done" in capsys.readouterr().err


def test_who_is_killed_is_no_faulty_node() -> None:
    def work() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert watch.within(lambda: 60.0, work) == 128 + signal.SIGKILL


def test_it_does_not_outlive_who_watches(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def work() -> int:
        pid_file.write_text(str(os.getpid()))
        time.sleep(600)
        return 0

    watcher = os.fork()
    if watcher == 0:
        watch.within(lambda: 600.0, work)
        os._exit(0)
    wait_until(lambda: pid_file.exists() and pid_file.read_text(), what="its pid")
    os.kill(watcher, signal.SIGKILL)
    os.waitpid(watcher, 0)
    wait_until(lambda: gone(int(pid_file.read_text())), what="its end")


def test_the_job_is_told_that_prolog_was_not_done(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in node.environment(1, "container:/x.sif").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(prolog, "_AFTER_S", -539.5)

    def hangs() -> int:
        time.sleep(60)
        return 0

    monkeypatch.setattr(prolog, "main", hangs)
    assert watch.main("prolog") == 0
    words = "the images of this job were not ready in time"
    failed(node, 1, node.task(1), "DeadlinePassed", words)


def test_nobody_waits_for_one_that_was_given_up(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in node.environment(1, "container:/x.sif").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(prolog, "_AFTER_S", -539.5)
    leaders = str(node.state / "leaders")
    ours = leader.join(leaders, 1000, "f", "/x.sif")
    assert ours
    # As of a process that cannot be killed, and has the file open as well.
    child = os.dup(ours._file)

    def hangs(**_: object) -> int:
        time.sleep(60)
        return 0

    monkeypatch.setattr(prolog, "main", hangs)
    assert watch.main("prolog", came=time.monotonic(), leader=ours) == 0
    next_one = leader.join(leaders, 1000, "f", "/x.sif")
    assert next_one
    assert next_one.leads
    os.close(child)
