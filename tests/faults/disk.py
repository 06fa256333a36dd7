"""A real ext4 file system of some MiB, in a file, mounted through a loop device."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.parts.daemon import PATH, missing_commands

_CHUNK = bytes(1 << 16)


class CannotMount(Exception):
    """The reason why a small disk cannot be mounted here."""


class Disk:
    """A mounted small disk. Its file lies beside the mount point."""

    def __init__(self, path: Path, file: Path) -> None:
        self.path = path
        self._file = file

    def free_bytes(self) -> int:
        """Return the bytes that ordinary users can still write."""
        seen = os.statvfs(self.path)
        return seen.f_bavail * seen.f_frsize

    def fill(self) -> Path:
        """Fill the disk, including root's reserve; return the file that does."""
        other = self.path / "others"
        with other.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(_CHUNK)
        return other

    def use_up_inodes(self) -> Path:
        """Create files until no more can be created; return their directory."""
        directory = self.path / "others"
        directory.mkdir()
        number = 0
        while os.statvfs(self.path).f_ffree:
            (directory / str(number)).touch()
            number += 1
        return directory

    def remount(self, option: str) -> None:
        """Mount it again, `ro` or `rw`."""
        _run("mount", "-o", f"remount,{option}", str(self.path))

    def break_down(self) -> None:
        """Trigger an error inside the file system, which makes it read-only."""
        device = Path(_run("findmnt", "-n", "-o", "SOURCE", str(self.path)).strip())
        Path(f"/sys/fs/ext4/{device.name}/trigger_fs_error").write_text("test")

    def repair(self) -> None:
        """Do what an administrator does after `break_down`.

        Goes on in a copy of the file: a mount namespace that another process made meanwhile keeps
        the old mount alive, and mounting the same file again would join that, read-only.
        """
        os.sync()
        self.unmount()
        self._file = Path(shutil.copy(self._file, self._file.with_suffix(".repaired")))
        # 1: errors were corrected.
        done = subprocess.run(
            ["e2fsck", "-fy", str(self._file)], env={"PATH": PATH}, capture_output=True, check=False
        )
        assert done.returncode in (0, 1), done.stdout
        self.mount()

    def mount(self) -> None:
        # The kernel frees the loop device with the mount.
        _run("mount", "-o", "loop,errors=remount-ro", str(self._file), str(self.path))

    def unmount(self) -> None:
        _run("umount", str(self.path))


@contextlib.contextmanager
def small_disk(path: Path, *, size: str, inodes: int = 512) -> Iterator[Disk]:
    """Mount a new file system of `size` (as mkfs has it: 16M) at `path`. Raises CannotMount."""
    if os.geteuid() != 0:
        raise CannotMount("only root can mount a small disk")
    if missing := missing_commands("mkfs.ext4", "mount", "findmnt"):
        raise CannotMount(missing)
    path.mkdir()
    disk = Disk(path, path.with_name(f"{path.name}.ext4"))
    _run("mkfs.ext4", "-q", "-N", str(inodes), str(disk._file), size)
    try:
        disk.mount()
    except subprocess.CalledProcessError as error:
        raise CannotMount(f"no loop device here: {error.stderr.strip()}") from error
    try:
        yield disk
    finally:
        try:
            disk.unmount()
        except subprocess.CalledProcessError:
            # A process that still is in there must not keep the mount for ever.
            _run("umount", "--lazy", str(path))


def _run(*argv: str) -> str:
    return subprocess.run(
        argv, env={"PATH": PATH}, check=True, capture_output=True, text=True
    ).stdout
