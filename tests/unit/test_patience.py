"""How long a job waits for another job's fetch: only while that makes progress."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcimg.cache import directories, inflight, policy, store
from hpcimg.cache.ensure import Staged, ensure
from hpcimg.cache.inflight import Inflight
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.fetch.contract import Fetched, Listener, Outcome, Request
from hpcimg.reference import parse
from tests.parts.served import Content, Server, sha256, tiny_image

FILE = Content(tiny_image(b"x" * 1000), announced="digest")
IN_LAYERS = Content(layers=(b"a" * 1000, b"b" * 500))
SHARING = Content(layers=(b"c" * 1000, b"b" * 500))
PATIENCE_S = 0.5
MINE, OTHERS = "https://a.example.org/x.sif", "https://b.example.org/x.sif"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    limits = policy.Limits(1 << 40, 1 << 40, 1 << 40, 0, 0.0)
    return Cache(layout, limits, tag_ttl_s=3600.0, patience_s=PATIENCE_S)


def run(cache: Cache, server: Server, uri: str, job: str, *, owner: int | None = None) -> Staged:
    return ensure(cache, Request(parse(uri), time.monotonic() + 60, job, owner), server)


@contextmanager
def at_work(work: Callable[[], object]) -> Iterator[None]:
    """Have somebody else at work, who has to end well."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
    assert errors == []


@pytest.mark.parametrize("owner", [None, 1000])
@pytest.mark.parametrize(
    ("others", "mine", "uri"),
    [(FILE, FILE, MINE), (FILE, FILE, OTHERS), (IN_LAYERS, IN_LAYERS, MINE),
     (IN_LAYERS, SHARING, MINE)],
    ids=["one key", "one reference", "one key of layers", "one layer"],
)  # fmt: skip
def test_who_does_not_move_is_not_waited_for(
    cache: Cache, others: Content, mine: Content, uri: str, owner: int | None
) -> None:
    stalled, go_on = threading.Event(), threading.Event()

    def stall(point: str) -> None:
        if point == "half":
            stalled.set()
            assert go_on.wait(60)

    slow, honest = Server(others, at=stall), Server(mine)
    with at_work(lambda: run(cache, slow, OTHERS, "1", owner=owner)):
        try:
            assert stalled.wait(60)
            began = time.monotonic()
            staged = run(cache, honest, uri, "2", owner=owner)
            took_s = time.monotonic() - began
            left = inflight.under_way(cache.layout)
        finally:
            go_on.set()
    assert Path(staged.path).read_bytes() == mine.image("squashfs")
    assert honest.transfers == 1
    # The one stalled layer of two, or the reference and then the key: two waits, and a bit.
    assert took_s < 2 * (PATIENCE_S + 1) + 5
    assert [work["job"] for work in left] == ["1"]
    # The other one ended well, too, and nothing is lost or doubled.
    entries = list(store.entries(cache.layout))
    assert len(entries) == len({entry.key for entry in entries})
    assert os.listdir(cache.layout.tmp) == os.listdir(cache.layout.inflight) == []
    for entry in entries:
        assert sha256(Path(store.path_of(cache.layout, entry)).read_bytes()) == entry.sha256


class Steady(Server):
    """Sends a piece repeatedly until it is told to end."""

    def __init__(self, content: Content) -> None:
        super().__init__(content)
        self.offered, self.end = threading.Event(), threading.Event()

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        data = self.content.data
        assert listener.offered(self.content.offer) == ()
        self.offered.set()
        for position in range(0, len(data), 1000):
            os.pwrite(descriptor, data[position : position + 1000], position)
            listener.progress("fetching", min(position + 1000, len(data)), len(data))
            if not self.end.is_set():
                self.end.wait(0.05)
        return Fetched(len(data), sha256(data))


def test_who_moves_is_waited_for(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    # 1000 bytes in each twentieth of a second, for six times as long as patience lasts.
    content = Content(tiny_image(b"y" * 60_000), announced="digest")
    cache = cache._replace(min_rate=1000)
    steady, mine = Steady(content), Server(content)
    caplog.set_level("INFO")
    with at_work(lambda: run(cache, steady, OTHERS, "1")):
        assert steady.offered.wait(60)
        staged = run(cache, mine, MINE, "2")
    assert staged.how == "hit"
    assert mine.transfers == 0
    assert "job 2 waits for https://a.example.org/x.sif, which another job is" in caplog.text
    assert "job 1 is fetching" in caplog.text


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Watched:
    """Work that gets at least 1000 bytes a second, or does not move."""

    def __init__(self, layout: Layout, clock: Clock) -> None:
        self._path = f"{layout.inflight}/x.json"
        self._clock = clock
        self.work = Inflight(layout, "x", Request(parse(MINE), 0.0), min_rate=1000)

    def says(self, phase: str, done: int = 0, total: int | None = None, *, after_s: float) -> None:
        self._clock.now += after_s
        self.work.update(phase, done, total)

    def moves(self, *, deadline: float = float("inf")) -> bool:
        self.work.reserve(0, 0)  # as it is now
        fields = json.loads(Path(self._path).read_text())
        return inflight.moves(fields, patience_s=29, deadline=deadline, now=self._clock.now)


@pytest.fixture
def watched(cache: Cache, clock: Clock) -> Watched:
    return Watched(cache.layout, clock)


def test_a_byte_a_second_is_no_move(watched: Watched) -> None:
    watched.says("asking", after_s=0)
    watched.says("fetching", 0, 10**9, after_s=0)
    for second in range(1, 30):
        watched.says("fetching", second, 10**9, after_s=1)
        assert watched.moves()
    watched.says("fetching", 30, 10**9, after_s=1)
    assert not watched.moves()


def test_neither_are_more_tries_and_phases(watched: Watched) -> None:
    watched.says("asking", after_s=0)
    watched.says("fetching", 0, 10**6, after_s=0)
    for _ in range(15):
        watched.says("waiting", 0, 10**6, after_s=1.9)
        watched.says("fetching", 999, 10**6, after_s=0.1)  # at once, and from the beginning
    assert not watched.moves()


def test_what_root_does_with_what_came_whole_is_a_move(watched: Watched) -> None:
    watched.says("fetching", 0, 100, after_s=0)
    watched.says("converting", 0, None, after_s=40)
    assert watched.moves()
    watched.says("checking", 0, None, after_s=40)
    assert watched.moves()


def test_a_burst_now_and_then_has_to_make_up_for_the_time_before(watched: Watched) -> None:
    watched.says("fetching", 0, None, after_s=0)
    watched.says("fetching", 19_000, None, after_s=20)
    watched.says("fetching", 19_000, None, after_s=9)
    assert watched.moves()
    watched.says("fetching", 19_000, None, after_s=2)
    assert not watched.moves()
    watched.says("fetching", 40_000, None, after_s=1)
    assert watched.moves()


def test_what_will_not_be_done_in_time_is_not_waited_for(watched: Watched, clock: Clock) -> None:
    watched.says("fetching", 0, 10_000_000, after_s=0)
    for second in range(1, 40):
        watched.says("fetching", second * 2000, 10_000_000, after_s=1)
    assert watched.moves(deadline=clock.now + 6000)
    assert not watched.moves(deadline=clock.now + 4000)
