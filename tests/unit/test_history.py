"""Events: written by many processes at once, counted, and rotated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcimg.cache import events, history
from hpcimg.cache.paths import Layout

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    os.makedirs(layout.state_tmp)
    os.makedirs(layout.locks)
    return layout


def test_nothing_yet(layout: Layout) -> None:
    assert history.sums(layout).family("events") == {}
    assert list(history.recent(layout)) == []
    history.rotate(layout)
    assert os.listdir(layout.state) == ["tmp"]


def test_counts_and_fields(layout: Layout) -> None:
    for number in range(3):
        events.record(layout.events, "hit", job=str(number), key="k")
    events.record(layout.events, "failed", message="wörse \x1b\n\udcff", took_s=0.5)
    assert history.sums(layout).family("events") == {"hit": 3, "failed": 1}
    seen = list(history.recent(layout))
    assert [event.get("job") for event in seen] == ["0", "1", "2", None]
    assert seen[3]["message"] == "wörse \x1b\n\udcff"
    assert seen[0]["time"] <= seen[3]["time"]


def test_what_is_half_a_line_or_none_of_ours_is_left_aside(layout: Layout) -> None:
    events.record(layout.events, "hit")
    with open(layout.events, "a", encoding="utf-8") as file:
        file.write('{"event": "h\n[1]\n{"other": 1}\n\n"text"\n')
    events.record(layout.events, "hit")
    assert history.sums(layout).family("events") == {"hit": 2}


def test_a_node_that_cannot_write_goes_on(layout: Layout) -> None:
    os.mkdir(layout.events)
    events.record(layout.events, "hit")
    events.record(f"{layout.state}/no/such/directory", "hit")
    assert os.listdir(layout.events) == []


def test_a_planted_link_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    os.symlink(tmp_path / "victim", layout.events)
    events.record(layout.events, "hit")
    assert not (tmp_path / "victim").exists()


def test_many_writers_never_mix(layout: Layout) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from hpcimg.cache import events\n"
        "for n in range(200): events.record(sys.argv[2], 'hit', who=sys.argv[3] * 300, n=n)"
    )
    command = [sys.executable, "-I", "-S", "-c", code, ROOT, layout.events]
    writers = [subprocess.Popen([*command, name]) for name in "abcd"]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    seen = list(history.recent(layout))
    assert sorted((event["who"][0], event["n"]) for event in seen) == [
        (name, number) for name in "abcd" for number in range(200)
    ]


def test_long_files_give_way_and_the_counts_stay(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_ROTATE_AT", 500)
    for number in range(100):
        events.record(layout.events, "hit", n=number)
        events.record(layout.events, "evict" if number % 2 else "fetched")
        history.rotate(layout)
    assert history.sums(layout).family("events") == {"hit": 100, "evict": 50, "fetched": 50}
    kept = sum(os.path.getsize(f"{layout.state}/{name}") for name in os.listdir(layout.state))
    assert kept < 10_000
    assert os.listdir(layout.state_tmp) == []
    # The latest are still there one by one.
    assert list(history.recent(layout))[-1]["event"] == "evict"


def test_a_short_file_is_left_alone(layout: Layout) -> None:
    events.record(layout.events, "hit")
    history.rotate(layout)
    assert sorted(os.listdir(layout.state)) == ["events.jsonl", "tmp"]


def test_counters_that_cannot_be_read_begin_again(layout: Layout) -> None:
    Path(layout.state, "counters.json").write_text(json.dumps({"hit": 5})[:-1])
    events.record(layout.events, "hit")
    assert history.sums(layout).family("events") == {"hit": 1}
