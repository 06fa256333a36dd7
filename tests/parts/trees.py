"""The content of a directory or an archive in one form, for comparison."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """A file by its kind: f, d, l, p, and c for devices.

    `content` is a file's digest or a link's target, `names` are all that a file has, where these
    are several. Links have no mode of their own.
    """

    kind: str
    mode: int
    mtime: int
    content: str = ""
    names: tuple[str, ...] = ()


Tree = dict[str, Entry]
_KINDS = {
    stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p",
    stat.S_IFCHR: "c", stat.S_IFBLK: "c",
}  # fmt: skip


def in_directory(top: Path) -> Tree:
    """Return what is below a directory, without following links."""
    found: Tree = {}
    inodes: dict[int, list[str]] = {}
    waiting = [""]
    while waiting:
        above = waiting.pop()
        for item in os.scandir(top / above):
            path = f"{above}/{item.name}" if above else item.name
            status = item.stat(follow_symlinks=False)
            kind, content = _KINDS[stat.S_IFMT(status.st_mode)], ""
            mode = stat.S_IMODE(status.st_mode)
            if kind == "f":
                content = _digest(Path(item.path).read_bytes())
            elif kind == "l":
                mode, content = 0, os.readlink(item.path)
            if kind == "d":
                waiting.append(path)
            else:
                inodes.setdefault(status.st_ino, []).append(path)
            found[path] = Entry(kind, mode, int(status.st_mtime // 1), content)
    return _with_names(found, list(inodes.values()))


def in_archive(data: bytes) -> Tree:
    """Return what is in an archive, in which each name has to come once, and links at last."""
    found: Tree = {}
    names: dict[str, list[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|", errors="surrogateescape") as archive:
        for member in archive:
            assert member.name not in found, f"{member.name} comes twice"
            if member.islnk():
                names[member.linkname].append(member.name)
                found[member.name] = found[member.linkname]
                continue
            kind, content, mode = "fdlp"[_kind(member)], "", member.mode
            if kind == "f":
                file = archive.extractfile(member)
                assert file
                content = _digest(file.read())
            elif kind == "l":
                mode, content = 0, member.linkname
            if kind != "d":
                names[member.name] = [member.name]
            found[member.name] = Entry(kind, mode, int(member.mtime), content)
    return _with_names(found, list(names.values()))


def _kind(member: tarfile.TarInfo) -> int:
    return [member.isreg(), member.isdir(), member.issym(), member.isfifo()].index(True)


def _with_names(found: Tree, groups: list[list[str]]) -> Tree:
    for names in groups:
        if len(names) > 1:
            for name in names:
                found[name] = found[name]._replace(names=tuple(sorted(names)))
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
