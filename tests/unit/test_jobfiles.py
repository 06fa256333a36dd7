"""A job's directory, as the helper finds, creates and leaves it while Epilog may run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcimg.cache import lease
from hpcimg.cache.paths import Layout
from hpcimg.slurm import jobfiles


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    for path in (layout.jobs, layout.leases, layout.state_tmp):
        Path(path).mkdir(parents=True)
    return layout


def test_a_job_that_prolog_had_nothing_to_do_for(layout: Layout) -> None:
    admitted = jobfiles.admit(layout, "7", 1000)
    assert admitted.made
    assert jobfiles.is_open(layout, "7", admitted.number)
    directory = Path(layout.job("7"))
    assert (directory / "task").read_text() == ""  # its tasks start as before
    record = json.loads((directory / "record.json").read_text())
    assert (record["state"], record["uid"], record["images"]) == ("ready", 1000, [])
    again = jobfiles.admit(layout, "7", 1000)
    assert (again.number, again.made) == (admitted.number, False)
    assert list(Path(layout.state_tmp).iterdir()) == []


def test_one_whose_prolog_was_interrupted_stays_so(layout: Layout) -> None:
    Path(layout.job("7")).mkdir()
    with pytest.raises(FileNotFoundError):
        jobfiles.admit(layout, "7", 1000)
    assert list(Path(layout.job("7")).iterdir()) == []


def test_a_lease_that_comes_while_epilog_drops_them_is_known_to_be_late(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted = jobfiles.admit(layout, "7", 1000)
    Path(layout.lease_directory("key")).mkdir()
    drop, seen = lease.drop, []

    def drop_and_look(layout: Layout, job: str) -> list[str]:
        seen.append(jobfiles.is_open(layout, job, admitted.number))
        dropped = drop(layout, job)
        assert lease.take(layout, "key", job)
        return dropped

    monkeypatch.setattr(lease, "drop", drop_and_look)
    jobfiles.release(layout, "7")
    assert seen == [False]
    assert lease.count(layout, "7") == 1
    lease.give_back(layout, "key", "7")
    lease.give_back(layout, "key", "7")
    assert lease.count(layout, "7") == 0


def test_a_requeued_job_is_another_one(layout: Layout) -> None:
    first = jobfiles.admit(layout, "7", 1000)
    kept = Path(layout.job("7")).rename(f"{layout.jobs}/old")  # its number is not used again
    second = jobfiles.admit(layout, "7", 1000)
    assert kept.exists()
    assert jobfiles.is_open(layout, "7", second.number)
    assert not jobfiles.is_open(layout, "7", first.number)


def test_what_the_importer_reads(layout: Layout) -> None:
    jobfiles.admit(layout, "7", 1000)
    for number in range(3):
        jobfiles.add_for_pyxis(layout, "7", 1000, f"docker://x:{number}", f"/images/{number}")
    lines = Path(f"{layout.job('7')}/pyxis").read_text().splitlines()
    assert lines[2:4] == ["docker://x:1", "/images/1"]
    assert len(lines) == 6
    # However often, and by however many names, it is asked for.
    for number in range(3000):
        jobfiles.add_for_pyxis(layout, "7", 1000, "docker://x:1", "/images/1")
        jobfiles.add_for_pyxis(layout, "7", 1000, f"docker://user{number}@x#y", "/images/1")
    text = Path(f"{layout.job('7')}/pyxis").read_text()
    assert len(text) < jobfiles._PYXIS_MAX + 100
    assert text.count("docker://x:1\n") == 1
