"""The programs that conversion needs: old and failing ones, and the messages about them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hpcimg import programs
from hpcimg.convert import pick_format
from hpcimg.errors import (  # fmt: skip
    HpcimgError,
    Interrupted,
    MissingTool,
    NodeError,
    NoRoom,
    NotAnImage,
)
from tests.parts import layers
from tests.parts.daemon import wait_until
from tests.parts.layers import converted, file, layer

pytestmark = pytest.mark.skipif(bool(layers.missing()), reason=layers.missing() or "-")
ROOT = Path(__file__).resolve().parents[2]


def refused(path: Path, error: type[HpcimgError], *data: bytes) -> str:
    """Return the message about an image that cannot be converted."""
    with pytest.raises(error) as caught:
        converted(path, data)
    assert str(caught.value).isprintable()
    return str(caught.value)


def fake(directory_: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put the test's programs before the host's in PATH."""
    for name, script in scripts.items():
        path = directory_ / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setattr(programs, "PATH", f"{directory_}:{programs.PATH}")


# The tools


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo mksquashfs version 4.2-git.1", "is 4.2, which is too old"),
        ("echo hello", "does not report its version"),
    ],
)
def test_a_mksquashfs_that_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    fake(tmp_path, monkeypatch, mksquashfs=script)
    said = refused(tmp_path / "image", MissingTool, layer(file("a")))
    assert why in said
    assert "install squashfs-tools, at least 4.3, preferably 4.5 or newer" in said


def test_a_mksquashfs_for_another_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, mksquashfs="")
    (tmp_path / "mksquashfs").write_bytes(b"\x7fELF" + bytes(60))
    said = refused(tmp_path / "image", MissingTool, layer(file("a")))
    assert "mksquashfs does not run: Exec format error" in said


def test_mksquashfs_is_killed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This says nothing about its capabilities."""
    fake(tmp_path, monkeypatch, mksquashfs="kill -9 $$")
    assert "was killed" in refused(tmp_path / "image", Interrupted, layer(file("a")))


def test_no_mksquashfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "PATH", str(tmp_path))
    assert "has no mksquashfs" in refused(tmp_path / "image", MissingTool, layer(file("a")))


@pytest.mark.parametrize("version", ["4.5", "4.4"])
@pytest.mark.parametrize(
    ("script", "error", "why"),
    [
        ("echo FATAL ERROR: no threads >&2; exit 1", NodeError, "no threads"),
        (
            "echo FATAL ERROR: Failed to create thread >&2; exit 1",
            Interrupted,
            "Failed to create thread",
        ),
        (
            "cat >/dev/null; echo Write failed because No space left on device >&2; exit 1",
            NoRoom,
            "",
        ),
        ("yes error | head -c 9999999 >&2; exit 1", NodeError, "error error"),
        ("kill -9 $$", Interrupted, "was killed"),
        ("kill -11 $$", NotAnImage, "it crashed with signal 11"),
    ],
)
def test_mksquashfs_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    script: str,
    error: type[HpcimgError],
    why: str,
) -> None:
    first = f'[ "$1" != -version ] || {{ echo mksquashfs version {version}; exit; }}'
    fake(tmp_path, monkeypatch, mksquashfs=f"{first}\n{script}")
    said = refused(tmp_path / "image", error, layer(file("a", os.urandom(3_000_000))))
    assert why in said
    assert len(said) < 900


def test_mksquashfs_ends_before_it_has_read_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, mksquashfs='[ "$1" != -version ] || echo version 4.5')
    big = layer(file("a", os.urandom(3_000_000)))
    assert "it exited with 0" in refused(tmp_path / "image", NodeError, big)


def test_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (pick_format("sif"), pick_format("squashfs")) == ("sif", "squashfs")
    monkeypatch.setattr(programs, "PATH", str(tmp_path))
    assert pick_format("auto") == "squashfs"
    (tmp_path / "singularity").touch(mode=0o755)
    assert pick_format("auto") == "sif"


def test_the_format_is_picked_without_heavy_imports() -> None:
    program = """
        import sys; sys.path.insert(0, sys.argv[1])
        from hpcimg.convert import pick_format
        pick_format("auto")
        assert not {"json", "subprocess", "ctypes", "tarfile", "zlib"} & set(sys.modules)
    """
    argv = [sys.executable, "-ISc", textwrap.dedent(program), str(ROOT)]
    subprocess.run(argv, check=True)


def test_mksquashfs_ends_when_the_conversion_is_killed(tmp_path: Path) -> None:
    # One that goes on although nobody writes to it any more.
    script = '[ "$1" != -version ] || { echo version 4.5; exit; }; exec sleep 100'
    program = """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from hpcimg.convert import merge, programs
        from tests.parts.layers import converted, file, layer
        def hang(*_):
            print("ready", flush=True)
            sys.stdin.read()
        programs.PATH, merge.merge = f"{sys.argv[2]}:{programs.PATH}", hang
        converted(Path(sys.argv[2]) / "image", [layer(file("a"))])
    """
    (tmp_path / "mksquashfs").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "mksquashfs").chmod(0o755)
    argv = [sys.executable, "-c", textwrap.dedent(program), str(ROOT), str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    (child,) = map(int, children)
    wait_until(lambda: not alive(child), what="mksquashfs to end")


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
