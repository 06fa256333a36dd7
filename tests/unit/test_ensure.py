"""What `ensure` does when others change the cache under it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcimg.cache import directories, evict, policy, store
from hpcimg.cache.ensure import Staged, ensure
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.errors import TooLarge
from hpcimg.fetch.contract import (
    Arrived,
    Fetch,
    Fetched,
    Offer,
    Offered,
    Outcome,
    Progress,
    Unchanged,
)
from hpcimg.reference import parse
from tests.parts import images

URI = "https://images.example.org/x.sif"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    return Cache(layout, policy.Limits(1 << 40, 1 << 40, 1 << 40, 0, 0.0), tag_ttl_s=0.0)


class Source:
    """A server with one image; `asked` runs when it is asked for news."""

    def __init__(self, data: bytes, asked: Callable[[], object]) -> None:
        self.data = data
        self.asked = asked
        self.validators: list[str] = []

    def __call__(
        self,
        descriptor: int,
        *,
        validator: str,
        offered: Offered,
        arrived: Arrived,
        progress: Progress,
    ) -> Outcome:
        self.validators.append(validator)
        if validator:
            self.asked()
            return Unchanged()
        assert offered(Offer("v1", len(self.data))) == ()
        os.write(descriptor, self.data)
        return Fetched(len(self.data), hashlib.sha256(self.data).hexdigest())


def no_conversion(*_: object, **__: object) -> Fetched:
    """Stand for what an image that is one file already has no use for."""
    raise AssertionError


def run(cache: Cache, source: Fetch, job: str, uri: str = URI) -> Staged:
    deadline = time.monotonic() + 10
    return ensure(
        cache,
        parse(uri),
        job=job,
        owner=None,
        deadline=deadline,
        fetch=source,
        convert=no_conversion,
    )


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
    assert source.validators == ["", "v1", ""]
    assert os.listdir(cache.layout.tmp) == os.listdir(cache.layout.inflight) == []


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

    def endless(_: int, *, offered: Offered, progress: Progress, **__: object) -> Outcome:
        assert offered(Offer("v1")) == ()
        for size in range(1, 102):
            progress("fetching", size, None)
        raise AssertionError

    limited = cache._replace(limits=cache.limits._replace(max_size=100))
    with pytest.raises(TooLarge, match="the cache holds 100 B"):
        run(limited, endless, "1")
    assert os.listdir(cache.layout.tmp) == os.listdir(cache.layout.inflight) == []
