"""The trash: everything in it is removed, within a time limit, and nothing else."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg.cache import directories, store, trash
from hpcimg.cache.paths import Layout
from tests.parts.daemon import wait_until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    yield layout
    # What is too deep for whoever cleans up after the test.
    trash.empty_all(layout, time_s=60)


def make_deep(path: str, levels: int) -> None:
    """Make directories within each other, far beyond what a path may name."""
    os.mkdir(path)
    here = os.open(path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_however_deep(layout: Layout) -> None:
    make_deep(f"{layout.work}/x", 5000)
    began = time.monotonic()
    assert store.sweep(layout) == 1
    assert time.monotonic() - began < 10
    assert os.listdir(layout.work) == []
    wait_until(lambda: trash.count(layout) == 0, what="an empty trash")


def test_of_any_kind_and_mode_and_no_link_is_followed(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("stays")
    made = Path(layout.work) / "x"
    (made / "a" / "b").mkdir(parents=True)
    (made / "a" / "link").symlink_to(tmp_path / "other")
    (made / "link").symlink_to(tmp_path / "other" / "file")
    (made / "a" / "hard").hardlink_to(tmp_path / "other" / "file")
    os.mkfifo(made / "a" / "b" / "pipe")
    for path in (made / "a" / "b", made / "a", made):
        path.chmod(0)
    (Path(layout.tmp) / "file").write_text("x")
    (Path(layout.tmp) / "link").symlink_to(tmp_path / "other")
    assert store.sweep(layout) == 3
    assert trash.count(layout) == 0
    assert (tmp_path / "other" / "file").read_text() == "stays"


def test_what_takes_long_is_left_to_a_process_of_its_own(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It outlives the process group of the hook that started it."""
    monkeypatch.setattr(trash, "_AT_ONCE_S", 0.0)
    spawned: list[int] = []
    spawn = os.posix_spawn
    monkeypatch.setattr(
        os, "posix_spawn", lambda *args, **options: spawned.append(spawn(*args, **options))
    )
    made = Path(layout.work) / "x"
    made.mkdir()
    for number in range(1000):
        (made / str(number)).touch()
    assert store.sweep(layout) == 1
    [pid] = spawned
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert os.waitpid(pid, 0)[1] == 0
    assert trash.count(layout) == 0


def test_a_large_file_is_not_unlinked_while_somebody_waits(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trash, "_AT_ONCE_BYTES", 50_000)
    behind: list[Layout] = []
    monkeypatch.setattr(trash, "_empty_behind", behind.append)
    (Path(layout.tmp) / "large").write_bytes(bytes(100_000))
    (Path(layout.work) / "x").mkdir()
    (Path(layout.work) / "x" / "large").write_bytes(bytes(100_000))
    (Path(layout.work) / "x" / "small").touch()
    store.sweep(layout)
    assert behind == [layout]
    assert trash.count(layout) == 2
    assert trash.empty_all(layout, time_s=10)
    assert trash.count(layout) == 0


@AS_ROOT
def test_what_is_mounted_stays_and_hinders_nobody(layout: Layout, tmp_path: Path) -> None:
    mounted = Path(layout.work) / "x" / "mounted"
    mounted.mkdir(parents=True)
    done = subprocess.run(["mount", "--bind", str(tmp_path), str(mounted)], check=False)
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (Path(layout.tmp) / "file").touch()
        store.sweep(layout)
        store.sweep(layout)
        assert trash.count(layout) == 1
        assert tmp_path.exists()
        assert os.listdir(layout.tmp) == []
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=False, capture_output=True)
        [left] = os.listdir(layout.trash)
        subprocess.run(["umount", f"{layout.trash}/{left}/mounted"], check=True)


@AS_ROOT
def test_one_that_cannot_be_put_away_is_in_nobodys_way(layout: Layout, tmp_path: Path) -> None:
    mounted = Path(layout.work) / "x"
    mounted.mkdir()
    if subprocess.run(["mount", "--bind", str(tmp_path), str(mounted)], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        for name in "ayz":
            (Path(layout.work) / name).mkdir()
        assert store.sweep(layout) == 3
        assert os.listdir(layout.work) == ["x"]
        assert "sweep_failed" in Path(layout.events).read_text()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_what_cannot_be_put_away_fails_no_job(layout: Layout) -> None:
    os.rmdir(layout.trash)
    Path(layout.trash).touch()
    (Path(layout.tmp) / "file").touch()
    assert store.sweep(layout) == 0
    assert "sweep_failed" in Path(layout.events).read_text()
    os.unlink(layout.trash)
