"""Hits and evictions of one image, interleaved at every system call and at random."""

from __future__ import annotations

import hashlib
import itertools
import os
import posix
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcimg import reference
from hpcimg.cache import directories, ensure, evict, hot, lease, policy
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.fetch.contract import Request
from tests.parts.daemon import TIMEOUT_S
from tests.parts.images import make_sif
from tests.parts.served import Content, Server

TEXT = "https://example.org/x.sif"
URI = reference.parse(TEXT)
CALLS = ("open", "close", "stat", "lstat", "utime", "mkdir", "rmdir", "rename", "unlink", "fsync")
LIMITS = policy.Limits(max_size=1 << 30, high=1 << 30, low=0, min_free=0, min_age_s=0)


class Image:
    """One image in a cache of its own, which is published, evicted and requested."""

    def __init__(self, directory: Path, data: bytes) -> None:
        self.layout = Layout(str(directory / "cache"), str(directory / "state"))
        directories.prepare(self.layout)
        self.data = data
        self.key = f"sha256-{hashlib.sha256(data).hexdigest()}"
        self.path = Path(self.layout.image(self.key, "sif", None))

    def stage(self, job: str) -> ensure.Staged:
        """Take the slow path, which may fetch."""
        cache = Cache(self.layout, LIMITS, tag_ttl_s=3600)
        request = Request(URI, time.monotonic() + 20, job)
        staged = ensure.ensure(cache, request, Server(Content(self.data)))
        hit = hot.Hit(self.key, staged.path, URI.uri)
        hot.remember(
            self.layout, TEXT, hit, owner=None, fingerprint="f", fresh_until=staged.fresh_until
        )
        return staged

    def hit(self, job: str) -> hot.Hit | None:
        """Take the fast path."""
        return hot.lookup(self.layout, TEXT, job=job, uid=0, fingerprint="f")

    def evict(self) -> bool:
        return evict.evict(self.layout, self.key)

    def ready(self, job: str) -> bool:
        """Tell whether the image that the job got is complete and leased to the job."""
        return self.path.read_bytes() == self.data and job in lease.holders(self.layout, self.key)


class Pause:
    """Runs a function in a thread and holds it before its n-th system call."""

    def __init__(self, function: Callable[[], Any], number: int) -> None:
        self._left = number
        self._stopped = threading.Event()
        self._resumed = threading.Event()
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self.reached = False
        self.result: Any = None

    def start(self) -> None:
        """Return when it is held, or has ended."""
        self._thread.start()
        assert self._stopped.wait(TIMEOUT_S)

    def resume(self) -> None:
        self._resumed.set()

    def finish(self) -> Any:
        """Let it continue to its end; return its result."""
        self.resume()
        self._thread.join(20)
        assert not self._thread.is_alive()
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def _run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.result = error
        self._stopped.set()

    def before_call(self) -> None:
        """Called in the thread that makes a system call."""
        if threading.current_thread() is not self._thread:
            return
        self._left -= 1
        if self._left == 0:
            self.reached = True
            self._stopped.set()
            assert self._resumed.wait(TIMEOUT_S)


def at_every_call(
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[], None],
    held: Callable[[], Any],
    meanwhile: Callable[[], Any],
) -> Iterator[tuple[Any, Any]]:
    """Give (what `held` returned, what `meanwhile` returned) for each call that it is held at.

    Where `meanwhile` has to wait for the other, the other goes on.
    """
    sleep = time.sleep
    for number in itertools.count(1):
        prepare()
        pause = Pause(held, number)
        with monkeypatch.context() as patch:
            for module, name in itertools.product((os, posix), CALLS):
                patch.setattr(module, name, _announced(pause, getattr(module, name)))
            patch.setattr(time, "sleep", lambda s, pause=pause: (pause.resume(), sleep(s)))
            pause.start()
            between = meanwhile()
            result = pause.finish()
        if not pause.reached:
            assert number > 3
            return
        yield result, between


def _announced(pause: Pause, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        pause.before_call()
        return real(*args, **options)

    return call


@pytest.fixture
def image(tmp_path: Path) -> Image:
    sif = make_sif(tmp_path / "x.sif", {"n": b"x"}, size_bytes=50_000)
    return Image(tmp_path, sif.read_bytes())


@pytest.fixture
def idle(image: Image) -> Callable[[], None]:
    """Have the image in the cache, hot, and no job using it."""

    def prepare() -> None:
        for job in lease.holders(image.layout, image.key):
            lease.drop(image.layout, job)
        image.stage("0")
        lease.drop(image.layout, "0")

    return prepare


def test_a_hit_held_while_it_is_evicted(
    monkeypatch: pytest.MonkeyPatch, image: Image, idle: Callable[[], None]
) -> None:
    seen = set()
    for hit, evicted in at_every_call(monkeypatch, idle, lambda: image.hit("1"), image.evict):
        assert (hit is None) == evicted
        assert evicted or image.ready("1")
        seen.add(evicted)
    assert seen == {True, False}


def test_an_eviction_held_while_there_is_a_hit(
    monkeypatch: pytest.MonkeyPatch, image: Image, idle: Callable[[], None]
) -> None:
    seen = set()
    for evicted, hit in at_every_call(monkeypatch, idle, image.evict, lambda: image.hit("1")):
        assert (hit is None) == evicted
        assert evicted or image.ready("1")
        seen.add(evicted)
    assert seen == {True, False}


def test_the_long_way_held_while_it_is_evicted(
    monkeypatch: pytest.MonkeyPatch, image: Image, idle: Callable[[], None]
) -> None:
    seen = set()
    for staged, evicted in at_every_call(monkeypatch, idle, lambda: image.stage("1"), image.evict):
        assert staged.path == str(image.path)
        assert image.ready("1")
        seen.add((staged.how, evicted))
    # Evicted before it was seen, and so fetched again; or leased first, and not evicted.
    assert seen == {("fetched", True), ("hit", False)}


def test_a_fetch_held_while_it_is_evicted(
    monkeypatch: pytest.MonkeyPatch, image: Image, idle: Callable[[], None]
) -> None:
    def gone() -> None:
        idle()
        assert image.evict()

    for staged, evicted in at_every_call(monkeypatch, gone, lambda: image.stage("1"), image.evict):
        assert staged.how == "fetched"
        assert not evicted
        assert image.ready("1")


def test_an_eviction_held_while_a_job_takes_the_long_way(
    monkeypatch: pytest.MonkeyPatch, image: Image, idle: Callable[[], None]
) -> None:
    seen = set()
    for evicted, staged in at_every_call(monkeypatch, idle, image.evict, lambda: image.stage("1")):
        assert image.ready("1")
        assert (staged.how == "fetched") == evicted
        seen.add(evicted)
    assert seen == {True, False}


def test_two_evictors(
    monkeypatch: pytest.MonkeyPatch, image: Image, idle: Callable[[], None]
) -> None:
    for one, other in at_every_call(monkeypatch, idle, image.evict, image.evict):
        assert one != other
        assert not image.path.exists()


def test_hits_and_evictions_at_random(image: Image) -> None:
    """Two threads take and drop leases as fast as they can, one evicts and fetches again."""
    over = threading.Event()
    hits: list[str] = []
    wrong: list[str] = []

    def take_and_drop(job: str) -> None:
        while not over.is_set():
            if image.hit(job):
                hits.append(job)
                if not (image.path.exists() and image.ready(job)):
                    wrong.append(job)
                lease.drop(image.layout, job)

    threads = [threading.Thread(target=take_and_drop, args=(job,)) for job in "12"]
    for thread in threads:
        thread.start()
    # So many, or as many as a busy machine does in that time.
    until = time.monotonic() + 20
    evictions = 0
    try:
        while evictions < 300 and time.monotonic() < until:
            image.stage("0")
            lease.drop(image.layout, "0")
            evictions += image.evict()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert evictions
    assert hits
