"""Images unpacked into a directory, as on a node with an old mksquashfs."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg import programs
from hpcimg.convert import oldsquashfs
from hpcimg.convert.tar import DIRECTORY, FIFO, FILE, LINK, SYMLINK, Member
from hpcimg.convert.unpack import Directory
from hpcimg.errors import NotAnImage
from tests.parts import layers
from tests.parts import oldsquashfs as old
from tests.parts.layers import (
    TIME,
    converted,
    directory,
    file,
    layer,
    link,
    listing,
    special,
    symlink,
    tar,
    unpack,
)  # fmt: skip

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
NEEDS_OLD = pytest.mark.skipif(
    bool(layers.missing() or old.missing()), reason=layers.missing() or old.missing() or "-"
)
NOBODY = 65534


@pytest.fixture
def top(tmp_path: Path) -> Path:
    made = tmp_path / "top"
    made.mkdir()
    return made


@contextlib.contextmanager
def receiver(top: Path, pseudo: io.BytesIO | None = None) -> Iterator[Directory]:
    with contextlib.closing(Directory(str(top), pseudo or io.BytesIO(), uri="docker://x")) as made:
        yield made


def member(kind: int, name: bytes, *, size: int = 0, target: bytes = b"") -> Member:
    return Member(kind, name, 0o755, 0, size, target)


# What the kernel is asked for, even where a tree of names is wrong


@pytest.mark.parametrize("kind", [FILE, DIRECTORY, LINK, SYMLINK, FIFO])
@pytest.mark.parametrize("name", [b"out/x", b"in/out/x"])
def test_nothing_goes_through_a_symbolic_link(
    tmp_path: Path, top: Path, kind: int, name: bytes
) -> None:
    with receiver(top) as files:
        files.add(member(SYMLINK, name.rpartition(b"/")[0], target=bytes(tmp_path)))
        files.add(member(FILE, b"a"))
        with pytest.raises(NotADirectoryError):
            files.add(member(kind, name, target=b"a"))
        with pytest.raises(NotADirectoryError):
            files.add(member(LINK, b"b", target=name))
    assert list(tmp_path.iterdir()) == [top]


@pytest.mark.parametrize("kind", [FILE, LINK, SYMLINK, FIFO])
def test_nothing_is_written_over(tmp_path: Path, top: Path, kind: int) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"1")
    with receiver(top) as files:
        files.add(member(FILE, b"a"))
        for name, target in ((b"link", bytes(victim)), (b"file", b"nothing")):
            files.add(member(SYMLINK, name, target=target))
            with pytest.raises(FileExistsError):
                files.add(member(kind, name, size=1, target=b"a"), [b"2"])
    assert victim.read_bytes() == b"1"


@pytest.mark.parametrize(
    ("kind", "name", "target", "why"),
    [
        (FILE, b"/".join([b"d"] * 252), b"", "too long or too deep"),
        (FILE, b"/".join([b"d" * 255] * 16), b"", "too long or too deep"),
        (SYMLINK, b"a", b"x" * 4096, "File name too long"),
    ],
)
def test_what_cannot_be_on_a_disk(
    top: Path, kind: int, name: bytes, target: bytes, why: str
) -> None:
    with receiver(top) as files, pytest.raises(NotAnImage, match=why):
        files.add(member(kind, name, target=target))


def test_the_longest_path_there_is(top: Path) -> None:
    name = b"/".join([b"d" * 254] * 16) + b"/" + b"e" * 13
    with receiver(top) as files:
        files.add(member(FILE, name, size=1), [b"1"])
        assert len(os.listdir(files._open[-1])) == 1
    assert len(name) == 4093


def test_holes_and_what_is_counted(top: Path) -> None:
    parts = [bytes(1 << 20), b"x" * 5000, bytes(1 << 20), bytes(3)]
    with receiver(top) as files:
        files.add(member(FILE, b"a", size=sum(map(len, parts))), parts)
        assert files.content_bytes == sum(map(len, parts))
        assert files.disk_bytes == 5000 + 4096
        files.add(member(FILE, b"d/e/empty"))
        assert files.disk_bytes == 5000 + 4 * 4096
    assert (top / "a").read_bytes() == b"".join(parts)
    assert (top / "a").stat().st_blocks * 512 < 100_000


def test_a_directory_keeps_its_time_whatever_comes_into_it_later(top: Path) -> None:
    with receiver(top) as files:
        files.add(Member(DIRECTORY, b"d", 0o2711, TIME))
        files.add(member(FILE, b"d/e/x"))
        files.add(Member(DIRECTORY, b"d/e", 0o1700, TIME + 1))
        files.end()
    seen = [(top / name).stat() for name in ("d", "d/e")]
    assert [int(each.st_mtime) for each in seen] == [TIME, TIME + 1]
    assert [oct(stat.S_IMODE(each.st_mode)) for each in seen] == ["0o2711", "0o1700"]


def test_true_modes_are_left_to_mksquashfs(top: Path) -> None:
    pseudo = io.BytesIO()
    with receiver(top, pseudo) as files:
        files.add(Member(FILE, b'a "b\\#\xff', 0o4111, 0))
        files.add(Member(FILE, b"x f 644 0 0 exit\nx f 644 0 0 exit", 0, 0))
        files.add(Member(DIRECTORY, b"d", 0o555, 0))
        files.add(Member(FIFO, b"p", 0, 0))
        files.end()
    assert pseudo.getvalue() == b'a\\ \\"b\\\\\\#\\\xff m 4111 0 0\nd m 555 0 0\n'
    modes = [oct(stat.S_IMODE(path.stat().st_mode)) for path in sorted(top.iterdir())]
    assert modes == ["0o4511", "0o755", "0o0", "0o400"]


# Beside the way by an archive


ODD = layer(
    directory("usr", mode=0o555), file("usr/run", b"run", mode=0o4111), directory("a b", mode=0),
    file('a b/"q\\', b"1", mode=0), file("a b/#x\t ", b"2", mode=0o2000), link("hard", "usr/run"),
    symlink("s", "usr"), link("s2", "s"), special("p", tarfile.FIFOTYPE), link("p2", "p"),
    directory("é", mode=0o1111), file("sparse", bytes(2_000_000) + b"x" + bytes(2_000_000)),
    directory("deep/er", mode=0o100), file("deep/er/x", mode=0o2755),
    directory("sticky", mode=0o1777),
)  # fmt: skip
TOP = layer(file("usr/top"), symlink("soft", "/x" * 300), file("new/dir/x"))


@NEEDS_OLD
def test_both_ways_make_the_same(
    tmp_path: Path, mksquashfs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: TIME + 99)
    made = converted(tmp_path / "by-this", [ODD, TOP])
    monkeypatch.setattr(programs, "PATH", layers.PATH)
    usual = converted(tmp_path / "by-tar", [ODD, TOP])
    # The time of the root is that of the conversion.
    assert listing(made)[1:] == listing(usual)[1:]
    assert listing(made)[0].split()[:2] == listing(usual)[0].split()[:2]
    trees = [unpack(path) for path in (made, usual)]
    for tree in trees:
        (tree / "p").unlink()
        (tree / "p2").unlink()
    subprocess.run(["diff", "-r", "--no-dereference", *trees], check=True)


@NEEDS_OLD
@AS_ROOT
@pytest.mark.parametrize("version", ["4.4", "4.3"])
def test_an_account_that_may_not_read_all_of_it(
    open_directory: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: TIME + 99)
    by_root = converted(open_directory / "by-tar", [ODD, TOP])
    tool = old.put(open_directory, version)
    monkeypatch.setattr(programs, "PATH", f"{tool.parent}:{programs.PATH}")
    work = open_directory / "nobody"
    work.mkdir()
    os.chown(work, NOBODY, NOBODY)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.umask(0o077)
            converted(work / "image", [ODD, TOP])
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert listing(work / "image")[1:] == listing(by_root)[1:]


@NEEDS_OLD
def test_a_file_that_cannot_be_packed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, mksquashfs would continue without it."""
    monkeypatch.setattr(programs, "PATH", f"{old.put(tmp_path, '4.4').parent}:{programs.PATH}")
    end = Directory.end

    def lose(files: Directory) -> None:
        end(files)
        os.write(files._pseudo.fileno(), b"gone m 644 0 0\n")

    monkeypatch.setattr(oldsquashfs.Directory, "end", lose)
    with pytest.raises(Exception, match="gone"):
        converted(tmp_path / "image", [tar(file("a"))])
