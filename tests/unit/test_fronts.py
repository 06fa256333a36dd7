"""The fronts before the origin, as `stage` arranges them."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from hpcimg import fronts
from hpcimg.cache import directories, policy
from hpcimg.cache.ensure import Staged
from hpcimg.cache.failures import Memory
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.errors import Unreachable
from hpcimg.fetch.contract import Listener, Outcome, Request, Way
from hpcimg.fronts import Asked, Front, in_front_of, spread
from hpcimg.reference import parse
from hpcimg.stage import _ensured
from tests.parts.node import ROOT
from tests.parts.served import Content, Server, sha256, tiny_image

URI = "https://images.example.org/x.sif"
OLD, NEW = tiny_image(b"old"), tiny_image(b"new")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    return Cache(layout, policy.Limits(1 << 40, 1 << 40, 1 << 40, 0, 0.0), tag_ttl_s=60.0)


def request(**more: Any) -> Request:
    return Request(parse(URI), time.monotonic() + 10, "1", **more)


def key(data: bytes) -> str:
    return f"sha256-{sha256(data)}"


class Others(Front):
    """The job's other nodes: what they have agreed upon before, or since."""

    def __init__(self, behind: Way, *, before: str = "", since: str = "") -> None:
        super().__init__(behind)
        self.before, self.since = before, since
        self.finished: list[str] = []

    def agreed(self) -> str:
        return self.before

    def finish(self, staged: Staged) -> None:
        self.finished.append(staged.entry.key)

    def settle(self, staged: Staged) -> str:
        return self.since or staged.entry.key


def run(cache: Cache, front: Others, **more: Any) -> str:
    return _ensured(cache, request(**more), front, [front], Memory()).entry.key


def test_the_fronts_are_asked_from_the_node_on() -> None:
    asked = Asked(None, None, request(), Server(Content(NEW)))  # type: ignore[arg-type]
    one, two = (lambda _, behind: nullcontext(Front(behind)) for _ in range(2))
    with in_front_of(asked, [one, lambda *_: None, two]) as (way, found):
        assert way is found[0]
        assert found[0].behind is found[1]
        assert found[1].behind is asked.origin


def test_a_job_of_one_node_agrees_with_nobody(cache: Cache) -> None:
    front = Others(Server(Content(NEW)), before=key(OLD), since=key(OLD))
    assert run(cache, front) == key(NEW)
    assert front.finished == [key(NEW)]


def test_what_was_agreed_upon_before_is_taken_whatever_the_cache_thinks(cache: Cache) -> None:
    assert run(cache, Others(Server(Content(NEW)))) == key(NEW)
    # The node has it not, and its way has it.
    behind = Server(Content(OLD))
    assert run(cache, Others(behind, before=key(OLD)), together="j") == key(OLD)
    # Both are here now, and each reference is what it was.
    behind = Server(Content(b""))
    assert run(cache, Others(behind, before=key(OLD)), together="j") == key(OLD)
    assert run(cache, Others(behind, before=key(NEW)), together="j") == key(NEW)
    assert run(cache, Others(behind)) == key(NEW)
    assert behind.asked == 0


def test_who_hears_of_it_late_takes_the_other_image(cache: Cache) -> None:
    class Turns(Server):
        def fetch(self, descriptor: int, listener: Listener, *, validator: str) -> Outcome:
            self.content = Content(OLD) if self.asked else Content(NEW)
            return super().fetch(descriptor, listener, validator=validator)

    front = Others(Turns(Content(NEW)), since=key(OLD))
    assert run(cache, front, together="j") == key(OLD)
    assert front.finished == [key(NEW)]


def test_another_image_than_the_jobs_is_no_image_for_it(cache: Cache) -> None:
    front = Others(Server(Content(NEW)), before=key(OLD))
    with pytest.raises(Unreachable, match="is no longer the image"):
        run(cache, front, together="j")


def test_nodes_of_one_job_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "SPREAD_S", 0.0)
    server = Server(Content(NEW))

    def opened(**more: Any) -> bool:
        asked = Asked(None, None, request(**more), server)  # type: ignore[arg-type]
        return spread(asked, server) is not None

    assert opened(together="j")
    assert not opened()


def test_what_a_site_does_not_have_is_not_loaded() -> None:
    program = "import sys, hpcimg.slurm.prolog; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert [name for name in done.stdout.split() if name.startswith("hpcimg.tier")] == []
