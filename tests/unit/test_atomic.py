"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import posix
import pwd
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcimg import atomic
from hpcimg.cache import directories, store
from hpcimg.cache.paths import Layout
from tests.parts.private import check_private


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o400])
def test_content_and_mode_whatever_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        atomic.write_file(str(tmp_path / "x"), "ü\udcff\n", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "x").read_bytes() == b"\xc3\xbc\xff\n"
    assert (tmp_path / "x").stat().st_mode & 0o7777 == mode
    assert os.listdir(tmp_path) == ["x"]


def test_a_reader_sees_the_old_text_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    texts = ["a" * 200_000, "b" * 200_000]
    path.write_text(texts[0])
    seen: list[str] = []

    def read() -> None:
        while len(seen) < 200:
            seen.append(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    turn = 0
    while reader.is_alive():
        turn += 1
        atomic.write_file(str(path), texts[turn % 2])
    reader.join()
    assert set(seen) <= set(texts)


@pytest.mark.parametrize("call", ["write", "fchmod", "fsync", "rename"])
def test_what_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(posix, call, fail)
        with pytest.raises(OSError, match="No space"):
            atomic.write_file(str(path), "new", durable=True)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(posix, "write", lambda fd, data: write(fd, data[:3]))
    atomic.write_file(str(tmp_path / "x"), "0123456789")
    assert (tmp_path / "x").read_text() == "0123456789"


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record what is flushed and renamed within the block, in order."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        done.append(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        fsync(descriptor)

    def note_rename(old: str, new: str) -> None:
        done.append(f"rename {old} {new}")
        rename(old, new)

    with monkeypatch.context() as patch:
        for module in (os, posix):
            patch.setattr(module, "fsync", note_fsync)
            patch.setattr(module, "rename", note_rename)
        yield done


def test_durable_flushes_file_then_renames_then_flushes_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temp, path = f"{tmp_path}/temp", f"{tmp_path}/x"
    with recorded(monkeypatch) as done:
        atomic.write_file(path, "text", temp=temp, durable=True)
    assert done == [f"fsync {temp}", f"rename {temp} {path}", f"fsync {tmp_path}"]
    with recorded(monkeypatch) as done:
        atomic.write_file(path, "text", temp=temp)
    assert done == [f"rename {temp} {path}"]


def test_an_image_is_flushed_before_and_after_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    entry = store.Entry("sha256-0", "sif", "0", 4, "x86_64", ("/x.sif",), fetched=1.0)
    with store.unfinished(layout, "x") as (temp, descriptor):
        os.write(descriptor, b"data")
        with recorded(monkeypatch) as done:
            store.publish(layout, entry, temp, descriptor)
    image, meta = f"{layout.images}/sha256-0.sif", f"{layout.metas}/sha256-0.json"
    assert done[0] == f"fsync {temp}"
    assert done[-2:] == [f"rename {temp} {image}", f"fsync {layout.images}"]
    # What is known of it is there before it is.
    assert [step.split()[2] for step in done[1:-2] if step.startswith("rename")] == [meta]
    assert done[-3] == f"fsync {layout.metas}"


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "temp").symlink_to("victim")
    with pytest.raises(OSError, match="Too many levels"):
        atomic.write_file(str(tmp_path / "x"), "text", temp=str(tmp_path / "temp"))
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "x").exists()


def test_what_a_killed_process_left_under_our_name_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "temp").write_text("a longer text than the next one")
    atomic.write_file(str(tmp_path / "x"), "text", temp=str(tmp_path / "temp"))
    assert (tmp_path / "x").read_text() == "text"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_one_more_may_read_it(open_directory: Path) -> None:
    path = open_directory / "x"
    atomic.write_file(str(path), "text", mode=0o400, reader=1)
    check_private(path, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_where_there_are_no_access_control_lists_the_users_group_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(posix, "setxattr", refuse)
    atomic.write_file(str(tmp_path / "x"), "text", mode=0o400, reader=1)
    seen = (tmp_path / "x").stat()
    assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (0, pwd.getpwuid(1).pw_gid, 0o440)
    with pytest.raises(OSError, match="not supported"):
        atomic.write_file(str(tmp_path / "y"), "text", mode=0o400, reader=3_999_999)
    assert os.listdir(tmp_path) == ["x"]


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert atomic.remove(str(tmp_path / "x"))
    assert not atomic.remove(str(tmp_path / "x"))
    with pytest.raises(OSError, match="directory"):
        atomic.remove(str(tmp_path))
