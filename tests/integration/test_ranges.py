"""Large files over several connections at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from hpcimg.errors import Unreachable
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http import ranges
from hpcimg.http.download import Get, download
from hpcimg.http.session import open_session
from tests.parts.parents import Parent
from tests.parts.webanswer import Fault
from tests.parts.webfaults import Slow, Status, Truncate
from tests.parts.webserver import WebServer

DATA = os.urandom(3_000_000)
PATH = "/large.sif"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat a file of three megabytes as large, and report progress early."""
    monkeypatch.setattr(ranges, "PART_BYTES", 250_000)
    monkeypatch.setattr(ranges, "_AT_LEAST_BYTES", 1_000_000)
    monkeypatch.setattr(ranges, "_LOOK_AFTER_S", 0.05)


class Download:
    """The result of one download."""

    def __init__(self, web: WebServer, directory: Path, faults: Iterable[Fault]) -> None:
        self.parent = Parent()
        self._web = web
        self._path = directory / "file"
        web.script(PATH, faults)

    def run(self, *, tries: int = 3) -> bytes:
        settings = Settings(tries, time.monotonic() + 60, 5.0, 5.0, networks=("127.0.0.1",))
        with self._path.open("w+b", buffering=0) as file, open_session(settings) as session:
            sink = Sink(file.fileno(), self.parent)
            url = self._web.url(PATH)
            wanted = Get(url, offer=lambda _, total: Offer("v", total))
            download(session, wanted, sink, settings)
            assert sink.position == len(self._path.read_bytes())
        return self._path.read_bytes()

    def ranges(self) -> list[str]:
        return [request.headers.get("Range", "") for request in self._web.requests()]


MakeDownload = Callable[..., Download]


@pytest.fixture
def slow(web: WebServer, tmp_path: Path) -> MakeDownload:
    """A download whose first connection is slow, with faults for those that come then."""
    web.put(PATH, DATA, etag='"1"')
    return lambda *faults: Download(web, tmp_path, [Slow(2_000_000), *faults])


def test_what_is_slow_comes_over_several(slow: MakeDownload) -> None:
    made = slow()
    assert made.run() == DATA
    first, *others = made.ranges()
    assert first == ""
    assert len(others) > 5
    begins = sorted(int(part.removeprefix("bytes=").partition("-")[0]) for part in others)
    assert begins[0] < 1_000_000
    assert len(set(begins)) == len(begins)


def test_what_is_fast_comes_over_one(web: WebServer, tmp_path: Path) -> None:
    web.put(PATH, DATA, etag='"1"')
    made = Download(web, tmp_path, [])
    assert made.run() == DATA
    assert made.ranges() == [""]


@pytest.mark.parametrize("fault", [Truncate(1000), Status(503), Status(429, retry_after="0")])
def test_a_part_that_fails(slow: MakeDownload, fault: Fault) -> None:
    """What arrived before is kept, and the rest is requested again."""
    made = slow(fault)
    assert made.run() == DATA
    assert len(made.parent.heard("retrying")) == 1
    assert made.parent.heard("rewound") == []


def test_a_file_that_changes(web: WebServer, slow: MakeDownload) -> None:
    made, other = slow(), os.urandom(len(DATA))

    class Changes(Parent):
        def offer(self, offer: Offer) -> Mapping[int, int] | None:
            if not self.said:
                web.put(PATH, other, etag='"2"')
            return super().offer(offer)

    made.parent = Changes()
    assert made.run() == other


def test_a_server_without_ranges_or_validator(web: WebServer, tmp_path: Path) -> None:
    web.put(PATH, DATA, etag='"1"', accept_ranges=False)
    made = Download(web, tmp_path, [Slow(30_000_000)])
    assert made.run() == DATA
    web.put(PATH, DATA)
    web.script(PATH, [Slow(30_000_000)])
    assert made.run() == DATA
    assert made.ranges() == ["", ""]


def test_a_server_that_always_fails(slow: MakeDownload) -> None:
    made = slow(*[Status(503)] * 40)
    with pytest.raises(Unreachable):
        made.run(tries=2)
