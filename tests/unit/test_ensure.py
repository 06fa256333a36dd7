"""How `ensure` behaves when other processes change the cache meanwhile."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcimg.cache import directories, evict, policy, store
from hpcimg.cache.ensure import NO_MEMORY, Staged, _Ensure, ensure
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.errors import TooLarge
from hpcimg.fetch.contract import Listener, Offer, Outcome, Request, Way
from hpcimg.reference import parse
from tests.parts import images
from tests.parts.served import Content, Server

URI = "https://images.example.org/x.sif"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    return Cache(layout, policy.Limits(1 << 40, 1 << 40, 1 << 40, 0, 0.0), tag_ttl_s=0.0)


class Source(Server):
    """A server with one image; `news` runs when it is asked for news."""

    def __init__(self, data: bytes, news: Callable[[], object]) -> None:
        super().__init__(Content(data))
        self.news = news
        self.validators: list[str] = []

    def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
        self.validators.append(validator)
        if validator:
            self.news()
        return super().fetch(descriptor, listener, validator=validator)


def run(cache: Cache, way: Way, job: str, uri: str = URI) -> Staged:
    return ensure(cache, Request(parse(uri), time.monotonic() + 10, job), way)


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    if missing := images.missing():
        pytest.skip(missing)
    return images.make_sif(tmp_path / "x.sif", {"hello": b"world"}).read_bytes()


def test_an_image_evicted_while_the_server_was_asked_is_fetched_again(
    cache: Cache, data: bytes
) -> None:
    key = f"sha256-{hashlib.sha256(data).hexdigest()}"
    source = Source(data, lambda: evict.evict(cache.layout, key))
    assert run(cache, source, "").how == "fetched"
    staged = run(cache, source, "2")
    assert staged.how == "fetched"
    assert Path(staged.path).read_bytes() == data
    assert source.validators == ["", hashlib.sha256(data).hexdigest(), ""]
    assert os.listdir(cache.layout.tmp) == os.listdir(cache.layout.inflight) == []


def test_a_mounted_file_is_looked_at_for_each_job(cache: Cache, data: bytes) -> None:
    cache = cache._replace(tag_ttl_s=3600.0)
    source = Source(data, lambda: None)
    assert [run(cache, source, job, "/x.sif").how for job in "12"] == ["fetched", "unchanged"]
    assert [run(cache, source, job).how for job in "34"] == ["fetched", "hit"]
    assert len(source.validators) == 3


def test_who_waited_believes_a_look_that_began_after_they_came(cache: Cache, data: bytes) -> None:
    """Otherwise sixty jobs of an array would check one after the other."""
    source = Source(data, lambda: None)
    run(cache, source, "1", "/x.sif")
    waiting = _Ensure(
        cache, Request(parse("/x.sif"), time.monotonic() + 10, "2"), source, NO_MEMORY
    )
    run(cache, source, "3", "/x.sif")
    assert waiting.run().how == "hit"
    assert len(source.validators) == 2


def test_many_addresses_of_one_image(cache: Cache, data: bytes) -> None:
    source = Source(data, lambda: None)
    staged = [run(cache, source, "", f"{URI}.{number}") for number in range(40)]
    assert len({each.path for each in staged}) == 1
    entry = store.load_entry(cache.layout, staged[0].entry.key)
    assert entry
    assert entry.uris[-1] == f"{URI}.39"
    assert len(entry.uris) == 32


def test_what_has_no_length_is_stopped_as_soon_as_the_cache_is_too_small(cache: Cache) -> None:
    """Not at the next look around, a second later: a fast server fills a disk by then."""

    class Endless(Server):
        def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
            assert listener.offered(Offer("v1")) == ()
            for size in range(1, 102):
                listener.progress("fetching", size, None)
            raise AssertionError

    limited = cache._replace(limits=cache.limits._replace(max_size=100))
    with pytest.raises(TooLarge, match="the cache holds 100 B"):
        run(limited, Endless(Content()), "1")
    assert os.listdir(cache.layout.tmp) == os.listdir(cache.layout.inflight) == []
