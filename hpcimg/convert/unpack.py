"""Writing the members of an image to a directory, for a mksquashfs that cannot read archives.

Names are hostile: each component of a path is opened relative to its parent directory, and no
symbolic link is followed, so nothing is written outside. Everything belongs to this process's
account, which must be able to read it again: if a mode forbids that, the file gets another mode,
and the true one goes into the pseudo file.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from typing import IO

from hpcimg.convert.tar import DIRECTORY, FIFO, FILE, LINK, SYMLINK, Member, shown
from hpcimg.errors import NotAnImage

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT = 0o755  # the mode of the image's root directory
_READABLE, _OPEN = 0o400, 0o700  # permissions that the owner of a file and of a directory needs
_ZEROS = bytes(1 << 20)
_BLOCK = 4096  # approximate disk space per file in addition to its content
# mksquashfs prefixes "./" to a name, and the kernel accepts no path of PATH_MAX bytes.
_MOST_NAME_BYTES = 4093
# mksquashfs, and the removal of the directory, keep every directory of a path open.
_MOST_DIRECTORIES = 250
# Limits of file systems: links per file, length of a symbolic link, length of names.
_LIMITS = (errno.EMLINK, errno.ENAMETOOLONG, errno.EILSEQ)


class Directory:
    """Writes members into the empty directory `path`, and lines for mksquashfs -pf into `pseudo`.

    `add` raises NotAnImage for what this node's disk cannot store, and OSError.
    """

    def __init__(self, path: str, pseudo: IO[bytes], *, uri: str) -> None:
        self._uri = uri
        self._directories: list[tuple[bytes, int, int]] = []
        # The current directory: the components of its path, each open.
        self._at: list[bytes] = []
        self._open = [os.open(path, _DIRECTORY)]
        os.fchmod(self._open[0], _ROOT)
        self._pseudo = pseudo
        self.content_bytes = 0
        self.disk_bytes = 0

    def close(self) -> None:
        """Close the open directories."""
        while self._open:
            os.close(self._open.pop())

    def add(self, member: Member, content: Iterable[bytes] = ()) -> None:
        """Add a member; for a file, `content` yields its `size` bytes."""
        name, kind = member.name, member.kind
        if len(name) > _MOST_NAME_BYTES or name.count(b"/") > _MOST_DIRECTORIES:
            raise self._refused(name, "its path is too long or too deep")
        if kind != DIRECTORY:  # these count where they are created
            self.disk_bytes += _BLOCK
        try:
            if kind == DIRECTORY:
                self._enter(name)
                self._directories.append((name, member.mode, member.mtime))
            elif kind == FILE:
                self._write(member, content)
                self.content_bytes += member.size
            elif kind == LINK:
                self._link(name, member.target)
            else:
                self._make(member)
        except OSError as error:
            if error.errno in _LIMITS:
                raise self._refused(name, os.strerror(error.errno)) from error
            raise

    def end(self) -> None:
        """Set the attributes of directories, after all their content was written."""
        for name, mode, mtime in self._directories:
            directory = self._enter(name)
            os.fchmod(directory, mode | _OPEN)
            os.utime(directory, (mtime, mtime))
            if mode | _OPEN != mode:
                self._restore(name, mode)

    def _write(self, member: Member, content: Iterable[bytes]) -> None:
        mode = member.mode
        directory, last = self._split(member.name)
        file = os.open(last, _NEW, 0o600, dir_fd=directory)
        try:
            at = end = 0
            for piece in content:
                if not _ZEROS.startswith(piece):  # otherwise leave a hole
                    self._write_all(file, piece, at)
                    end = at + len(piece)
                at += len(piece)
            if end < at:
                os.ftruncate(file, at)
            # After the content: writing clears setuid bits.
            os.fchmod(file, mode | _READABLE)
            os.utime(file, (member.mtime, member.mtime))
        finally:
            os.close(file)
        if mode | _READABLE != mode:
            self._restore(member.name, mode)

    def _write_all(self, file: int, piece: bytes, at: int) -> None:
        while piece:
            written = os.pwrite(file, piece, at)
            self.disk_bytes += written
            at += written
            piece = piece[written:]

    def _link(self, name: bytes, target: bytes) -> None:
        there, first = self._split(target)
        there = os.dup(there)
        try:
            directory, last = self._split(name)
            os.link(first, last, src_dir_fd=there, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(there)

    def _make(self, member: Member) -> None:
        directory, last = self._split(member.name)
        if member.kind == SYMLINK:
            os.symlink(member.target, last, dir_fd=directory)
        else:
            assert member.kind == FIFO
            os.mkfifo(last, dir_fd=directory)
            os.chmod(last, member.mode, dir_fd=directory)
        times = (member.mtime, member.mtime)
        os.utime(last, times, dir_fd=directory, follow_symlinks=False)

    def _split(self, name: bytes) -> tuple[int, bytes]:
        """Return a name's parent directory, opened or created, and its last component."""
        above, _, last = name.rpartition(b"/")
        return self._enter(above), last

    def _enter(self, directory: bytes) -> int:
        parts = directory.split(b"/") if directory else []
        while self._at != parts[: len(self._at)]:
            self._at.pop()
            os.close(self._open.pop())
        for part in parts[len(self._at) :]:
            above = self._open[-1]
            try:
                opened = os.open(part, _DIRECTORY, dir_fd=above)
            except FileNotFoundError:
                os.mkdir(part, _OPEN, dir_fd=above)
                self.disk_bytes += _BLOCK
                opened = os.open(part, _DIRECTORY, dir_fd=above)
            self._open.append(opened)
            self._at.append(part)
        return self._open[-1]

    def _restore(self, name: bytes, mode: int) -> None:
        # A line cannot contain a line break, and the lines after it could be commands.
        if b"\n" not in name:
            self._pseudo.write(b"%b m %o 0 0\n" % (_escaped(name), mode))

    def _refused(self, name: bytes, why: str) -> NotAnImage:
        return NotAnImage(
            f"{self._uri} cannot be converted on this node",
            why=f"it cannot unpack {shown(name)}: {why}",
            do="Use another image, or ask the administrators for squashfs-tools 4.5 or newer.",
        )


def _escaped(name: bytes) -> bytes:
    """Return a name with a backslash before all special characters."""
    return re.sub(rb"([^\w./-])", rb"\\\1", name)
