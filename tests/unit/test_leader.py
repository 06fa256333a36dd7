"""Which job fetches an image and which jobs wait, whatever happens to the leader."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcimg.cache import bounds, leader
from hpcimg.cache.leader import Leader, Told
from hpcimg.cache.paths import Layout

NAME = "https://example.org/x.sif"
TOLD = Told("7", NAME, patience_s=60.0, deadline_s=60.0)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "cache"), str(tmp_path / "state"))


def join(layout: Layout, *, uid: int = 1000, fingerprint: str = "f") -> Leader:
    place = leader.join(layout.leaders, uid, fingerprint, NAME)
    assert place
    return place


@contextmanager
def led_by_another(layout: Layout, told: Told = TOLD) -> Iterator[Callable[[bytes], None]]:
    """Let another process lead; yield a handle to end it with "done", or to kill it."""
    ours, theirs = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        place = join(layout)
        place.tell(told)
        os.write(theirs[1], b"x")
        os.close(ours[1])
        if os.read(ours[0], 4) == b"done":
            place.done()
        os.kill(os.getpid(), signal.SIGKILL)
    os.read(theirs[0], 1)

    def end(how: bytes) -> None:
        os.write(ours[1], how)

    try:
        yield end
    finally:
        for file in (*ours, *theirs):
            os.close(file)
        os.waitpid(pid, 0)


def heard() -> tuple[list[str], Callable[[Told], None]]:
    uris: list[str] = []
    return uris, lambda told: uris.append(told.uri)


def test_the_first_leads_and_the_next_does_not(layout: Layout) -> None:
    first = join(layout)
    assert first.leads
    assert not join(layout).leads
    # Neither another user nor another configuration waits for it.
    assert join(layout, uid=1001).leads
    assert join(layout, fingerprint="g").leads
    first.done()
    first.done()
    assert join(layout).leads


@pytest.mark.parametrize(("how", "then_leads"), [(b"done", False), (b"die", True)])
def test_who_waits_is_woken(layout: Layout, how: bytes, then_leads: bool) -> None:
    with led_by_another(layout) as end:
        place = join(layout)
        uris, say = heard()
        timer = threading.Timer(0.2, end, [how])
        timer.start()
        assert place.wait(time.monotonic(), say)
        assert uris == [NAME]
        assert (place.leads, place.abandoned) == (then_leads, False)
        timer.join()
    assert join(layout).leads is not then_leads


def test_all_are_woken(layout: Layout) -> None:
    with led_by_another(layout) as end:
        pids = []
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if join(layout).wait(time.monotonic(), lambda _: None) else 1)
            pids.append(pid)
        end(b"done")
        assert {os.waitpid(pid, 0)[1] for pid in pids} == {0}


@pytest.mark.parametrize(
    "told",
    [
        Told("7", NAME, patience_s=-1.0, deadline_s=60.0),
        Told("7", NAME, patience_s=60.0, deadline_s=0.1),
    ],
    ids=["it does not go on", "the deadline"],
)
def test_who_waits_in_vain_gives_up(layout: Layout, told: Told) -> None:
    with led_by_another(layout, told):
        place = join(layout)
        assert not place.wait(time.monotonic(), lambda _: None)
        assert place.abandoned
        assert not place.leads


def test_one_that_says_nothing_is_not_waited_for(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "_TELLS_S", 0.1)
    first = join(layout)
    uris, say = heard()
    assert not join(layout).wait(time.monotonic(), say)
    assert uris == []
    first.done()


def test_one_that_goes_on_is_waited_for(layout: Layout) -> None:
    """Even for longer than `patience`."""
    first = join(layout)
    first.tell(Told("7", NAME, patience_s=-0.5, deadline_s=60.0))
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(0.05):
            first.goes_on()
        first.done()

    thread = threading.Thread(target=go_on)
    thread.start()
    threading.Timer(0.8, ended.set).start()
    assert join(layout).wait(time.monotonic(), lambda _: None)
    thread.join()


def test_what_one_that_was_killed_left_goes(layout: Layout) -> None:
    with led_by_another(layout) as end:
        end(b"die")
    [left] = os.listdir(layout.leaders)
    ours = join(layout, uid=1001)
    bounds.keep(layout)
    [kept] = os.listdir(layout.leaders)
    assert kept != left
    assert ours.leads


def test_a_name_that_is_too_long_is_not_waited_for(layout: Layout) -> None:
    assert leader.join(layout.leaders, 1000, "f", "é" * 130) is None


def test_a_link_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    join(layout).done()
    target = tmp_path / "target"
    target.write_text("kept")
    name = NAME.replace("/", "%2F")
    Path(layout.leaders, f"1000 f {name}").symlink_to(target)
    assert leader.join(layout.leaders, 1000, "f", NAME) is None
    assert target.read_text() == "kept"
