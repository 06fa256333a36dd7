"""Sums of events: each event counts once, whatever happens to its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpcimg.cache import events, history
from hpcimg.cache.paths import Layout
from hpcimg.cache.sums import Sums

EVENTS: list[dict[str, Any]] = [
    {"event": "fetched", "time": 1, "job": "1", "bytes": 100, "took_s": 3.0, "scheme": "docker"},
    {"event": "fetched", "time": 2, "job": "", "bytes": 10, "took_s": 0.7, "scheme": "https"},
    {"event": "hit", "time": 4, "job": "2", "bytes": 100, "took_s": 0.01},
    {"event": "hit", "time": 3, "job": "", "bytes": 100, "took_s": 0.2},  # of no job
    {"event": "failed", "time": 5, "class": "user", "error": "NotFound", "took_s": 1000.0},
    {"event": "evict", "time": 6, "bytes": 7, "reason": "room"},
    {"event": "evict", "time": 7, "bytes": 8},
]


def summed(seen: Sums) -> dict[str, dict[str, float]]:
    names = ("served_bytes", "fetched_bytes", "failures", "evicted_bytes", "buckets", "seconds")
    return {name: seen.family(name) for name in names}


def test_what_is_summed() -> None:
    seen = Sums().add_all(EVENTS)
    assert summed(seen) == {
        "served_bytes": {"fetched": 110, "hit": 100},
        "fetched_bytes": {"docker": 100, "https": 10},
        "failures": {"user NotFound": 1},
        "evicted_bytes": {"room": 7, "other": 8},
        "buckets": {"fetched 5.0": 1, "fetched 1.0": 1, "hit 0.01": 1, "hit 0.5": 1},
        "seconds": {"fetched": 3.7, "hit": pytest.approx(0.21), "failed": 1000.0},
    }
    assert seen.last["hit"] == 4
    assert seen.total("served_bytes") == 210


def test_they_are_made_again() -> None:
    seen = Sums().add_all(EVENTS)
    again = Sums.from_dict(seen.to_dict())
    assert again.to_dict() == seen.to_dict()


@pytest.mark.parametrize("fields", [{}, {"version": 1}, {"version": 2, "sums": 3, "last": {}}, []])
def test_what_is_none_of_ours(fields: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says
        Sums.from_dict(fields)


@pytest.mark.parametrize("odd", ["x", None, float("nan"), float("inf"), -5, [1]])
def test_an_odd_number_counts_as_nothing(odd: Any) -> None:
    seen = Sums().add_all([{"event": "fetched", "time": odd, "bytes": odd, "took_s": odd}])
    assert seen.total("fetched_bytes") == 0
    assert seen.family("seconds") == {"fetched": 0}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(history, "_ROTATE_AT", 1)
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    os.makedirs(layout.state_tmp)
    os.makedirs(layout.locks)
    return layout


def record_all(layout: Layout) -> None:
    for event in EVENTS:
        fields = {name: value for name, value in event.items() if name not in ("event", "time")}
        events.record(layout.events, event["event"], **fields)


def test_sums_of_bytes_and_seconds_outlive_their_events(layout: Layout) -> None:
    for number in range(3):
        # A file is identified by its first line, which two files of one moment would share.
        events.record(layout.events, "sweep", files=number)
        record_all(layout)
        history.rotate(layout)
    record_all(layout)
    wanted = Sums().add_all([*EVENTS * 4, *[{"event": "sweep"}] * 3])
    seen = summed(history.sums(layout))
    assert seen["seconds"].pop("hit") == pytest.approx(wanted.family("seconds")["hit"])
    assert seen == {
        **summed(wanted),
        "seconds": {"fetched": pytest.approx(14.8), "failed": 4000.0},
    }


def record_in_two_files(layout: Layout) -> dict[str, float]:
    """Record events, with a rotation in between; return their sums."""
    record_all(layout)
    history.rotate(layout)
    events.record(layout.events, "sweep", files=1)  # as above
    record_all(layout)
    return history.sums(layout).family("events")


def test_a_rotation_that_was_cut_off_counts_nothing_twice(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = record_in_two_files(layout)

    def killed(*_: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        rename = os.rename
        patch.setattr(os, "rename", lambda a, b: killed() if a == layout.events else rename(a, b))
        with pytest.raises(OSError):  # noqa: PT011
            history.rotate(layout)
    assert os.path.exists(f"{layout.state}/counters.json")
    assert history.sums(layout).family("events") == wanted
    history.rotate(layout)
    assert history.sums(layout).family("events") == wanted
    history.rotate(layout)  # nothing new, and no file to begin
    assert history.sums(layout).family("events") == wanted


def test_a_rotation_while_somebody_reads_loses_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = record_in_two_files(layout)
    read, left = history._read, [1]

    def read_slowly(path: str) -> Any:
        yield from read(path)
        if path.endswith("events.1.jsonl") and left.pop(0) if left else False:
            monkeypatch.setattr(history, "_read", read)
            history.rotate(layout)

    monkeypatch.setattr(history, "_read", read_slowly)
    assert history.sums(layout).family("events") == wanted
