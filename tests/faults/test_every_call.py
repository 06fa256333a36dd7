"""Each system call by which the cache changes files, killed at and failing, one at a time.

test_kill_steps.py and test_write_errors.py do this to whole hooks; here it is the cache alone, so
that no call is left out, and images in layers, private ones and eviction have their turn.
"""

from __future__ import annotations

import functools
import itertools
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from hpcimg.cache import evict, inflight, lease, policy, store
from hpcimg.cache.paths import Layout
from hpcimg.cache.policy import Cache
from hpcimg.errors import CacheUnusable, NoRoom
from tests.faults import forked
from tests.faults.forked import End
from tests.parts.served import Content, Server, sha256, stage, tiny_image

# As many runs as there are calls, on a machine that may be busy.
pytestmark = pytest.mark.timeout(360)

# The disk is full, which passes; the disk is broken, which somebody has to see to.
CLASSES = {
    "ENOSPC": NoRoom, "EDQUOT": NoRoom, "EIO": CacheUnusable, "EROFS": CacheUnusable,
}  # fmt: skip
# They take turns, but in a long run (HPCIMG_LONG=1): then every call meets every fault.
FAULTS = (
    [("kill",), *((fault,) for fault in CLASSES)]
    if os.environ.get("HPCIMG_LONG")
    else [("kill", "ENOSPC", "EIO", "kill", "EDQUOT", "EROFS")]
)
with_each_fault = pytest.mark.parametrize("faults", FAULTS, ids="-".join)
URI = "https://example.org/new.sif"
LAYERS = (b"a" * 1000, b"b" * 600, b"c" * 400)
FILE = Content(tiny_image(b"x" * 900), announced="digest")
UNANNOUNCED = Content(tiny_image(b"y" * 900), announced="nothing")
IN_LAYERS = Content(layers=LAYERS)
# It shares a layer, and names one twice.
SHARING = Content(layers=(LAYERS[0], LAYERS[2], LAYERS[0]))
OLD = [Content(tiny_image(bytes([n]) * 1900)) for n in range(3)]
ROOM = 1 << 20


class Case(NamedTuple):
    """What is there before, what is wanted then and by whom, and how much room there is."""

    before: tuple[Content, ...]
    wanted: Content
    owner: int | None = None
    max_size: int = ROOM


CASES = {
    "a file": Case((), FILE),
    "a file without a length": Case((), UNANNOUNCED),
    "a file under another name": Case((FILE,), FILE),
    "a private file": Case((), FILE, 1000),
    "layers": Case((), IN_LAYERS),
    "layers that are there in part": Case((SHARING,), IN_LAYERS),
    "one layer twice": Case((), SHARING),
    "private layers": Case((), IN_LAYERS, 1000),
    # Two of the old ones have to go, and one is in use.
    "a file that others make room for": Case(tuple(OLD), FILE, max_size=6500),
    "layers that others make room for": Case(tuple(OLD), IN_LAYERS, max_size=6500),
}


class Bench:
    """A cache with what is there before in it. Job 9 uses the first of that."""

    def __init__(self, directory: Path, case: Case) -> None:
        directory.mkdir()
        self.case = case
        limits = policy.Limits(case.max_size, case.max_size, case.max_size // 2, 0, 0.0)
        layout = Layout(f"{directory}/cache", f"{directory}/state")
        self.cache = Cache(layout, limits, tag_ttl_s=3600)
        self.layout = layout
        self.used: list[tuple[Path, bytes]] = []
        for number, content in enumerate(case.before):
            job = "" if number else "9"
            staged = stage(self.cache, f"https://example.org/{number}", Server(content), job=job)
            if job:
                self.used.append((Path(staged.path), content.image("squashfs")))

    def stage(self) -> str:
        """Stage what is wanted; return its path."""
        server = Server(self.case.wanted)
        return stage(self.cache, URI, server, job="1", owner=self.case.owner).path

    def check(self) -> None:
        """Check that nothing is broken, whatever the fault."""
        for path, data in self.used:
            assert path.read_bytes() == data
        used = 0
        for entry in store.entries(self.layout):
            data = Path(store.path_of(self.layout, entry)).read_bytes()
            assert sha256(data) == entry.sha256
            assert len(data) == entry.size_bytes
            if not entry.source:
                assert sha256(data) in entry.key
            used += len(data)
        assert used <= self.case.max_size

    def check_left(self) -> None:
        """Check that nothing unfinished is left."""
        directories = (
            self.layout.tmp,
            self.layout.work,
            self.layout.state_tmp,
            self.layout.inflight,
        )
        assert [name for directory in directories for name in os.listdir(directory)] == []


def check_end(end: End, fault: str) -> None:
    """Check that it was killed, succeeded, or failed with the right class of error."""
    if fault == "kill":
        assert end.killed
        return
    assert not end.unforeseen, f"{end.struck}: {end.unforeseen}"
    if end.error:
        assert type(end.error) is CLASSES[fault], (end, str(end.error))
    # What cannot be removed is there until its process is gone.
    if not end.struck.startswith("unlink"):
        assert not end.left, end


@with_each_fault
@pytest.mark.parametrize("name", CASES)
def test_staging(name: str, faults: tuple[str, ...], memory: Path) -> None:
    data = CASES[name].wanted.image("squashfs")
    failed = 0
    for number, fault in enumerate(itertools.cycle(faults), start=1):
        bench = Bench(memory / str(number), CASES[name])
        end = forked.run(bench.stage, bench.layout, fault=fault, number=number)
        if not end.struck:
            assert (end.error, end.unforeseen, end.left) == (None, "", ())
            break
        check_end(end, fault)
        failed += end.killed or end.error is not None
        bench.check()
        assert Path(bench.stage()).read_bytes() == data, end
        bench.check()
        bench.check_left()
    assert failed > 10


@with_each_fault
def test_eviction(faults: tuple[str, ...], memory: Path) -> None:
    """Eviction as in Epilog."""
    evicted = 0
    for number, fault in enumerate(itertools.cycle(faults), start=1):
        bench = Bench(memory / str(number), Case((*OLD, IN_LAYERS), FILE))
        layout, limits = bench.layout, policy.Limits(4000, 4000, 2000, 0, 0.0)

        trim = functools.partial(evict.trim, layout, limits, time_s=5)
        end = forked.run(trim, layout, fault=fault, number=number)
        if not end.struck:
            assert (end.error, end.unforeseen, end.left) == (None, "", ())
            break
        check_end(end, fault)
        evicted += end.struck.startswith("unlink")
        bench.check()
        trim()
        bench.check()
        left = list(store.entries(layout))
        assert sum(entry.size_bytes for entry in left) <= limits.high
        assert ["9"] in [lease.holders(layout, entry.key) for entry in left]
        assert Path(bench.stage()).read_bytes() == FILE.data
        assert inflight.under_way(layout) == []
        bench.check_left()
    assert evicted > 5
