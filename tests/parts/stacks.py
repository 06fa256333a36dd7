"""Random layers that interfere with each other, for comparing several tools.

A stack depends on its number alone. Names are few, so that layers meet: links to directories
inside and across layers, absolute ones, dangling ones, loops, and such as leave the root; hard
links through links; whiteouts; what was a file becomes a directory or a link; names twice in one
layer. All forms of tar that tools write are in it.
"""

from __future__ import annotations

import gzip
import random
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

_BLOCK = 512
_NAMES = [
    "a",
    "b",
    "c",
    "lib",
    "usr",
    "etc",
    "é",
    "new\nline",
    "-dash",
    "blank ",
    "\udcff",
    "x" * 90,
]
_TARGETS = [
    "a", "b", "c", "usr/lib", "/usr/lib", "../a", "..", "/", ".", "../../../../b", "a/../b/c",
    "/a/./b/", "lib", "nowhere", "/nowhere/deep", "../nowhere/../a",
]  # fmt: skip
_FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
_ENDS = (bytes(2 * _BLOCK), bytes(20 * _BLOCK), bytes(_BLOCK), b"")
# Times of modification; none is later than today.
_TIME, _SPAN = 1_000_000_000, 500_000_000


class Stack(NamedTuple):
    """The archives of layers, lowest first, and the same compressed."""

    archives: tuple[bytes, ...]
    layers: tuple[bytes, ...]
    about: str


def make_stack(number: int) -> Stack:
    """Return one of many stacks."""
    return _Maker(number).stack()


class _Maker:
    def __init__(self, number: int) -> None:
        self._random = random.Random(number)
        # Few of all names, so that paths collide; others in other stacks.
        self._names = self._random.sample(_NAMES, 4)
        self._named: list[str] = []  # all paths so far
        self._leaves: list[str] = []  # possible targets of hard links
        self._ways: list[str] = []  # possible parents of other paths: directories and links
        # Few stacks have what every tool refuses, such as a hard link to nothing.
        self._careless = self._chance(0.1)
        # As builders write layers: no name twice, hard links within the layer, and in
        # some of them directories before what is in them.
        self._tidy = self._chance(0.75)
        self._with_directories = 0.9 if self._chance(0.4) else 0.1
        self._about: list[str] = []
        self._kinds: dict[Callable[[], tarfile.TarInfo], int] = {
            self._file: 8, self._directory: 6, self._symlink: 5, self._hard_link: 3,
            self._whiteout: 3, self._opaque: 1, self._fifo: 1, self._device: 1,
        }  # fmt: skip

    def stack(self) -> Stack:
        archives = [self._archive() for _ in range(self._random.randint(1, 4))]
        if self._chance(0.05):
            archives.append(archives[0])
        packed = [gzip.compress(data, 1) if self._chance(0.5) else data for data in archives]
        about = "\n".join(self._about)
        return Stack(tuple(archives), tuple(packed), about)

    def _archive(self) -> bytes:
        self._about.append("a layer")
        if self._chance(0.7):
            self._leaves = []
        archive, here = b"", set[str]()
        for _ in range(self._random.randint(1, 9) if self._chance(0.95) else 0):
            [make] = self._random.choices(list(self._kinds), list(self._kinds.values()))
            made = make()
            for member in self._tidied(made, here) if self._tidy else [made]:
                archive += self._written(member)
        return archive + self._random.choice(_ENDS)

    def _tidied(self, member: tarfile.TarInfo, here: set[str]) -> Iterator[tarfile.TarInfo]:
        """Yield a member as builders have it in a layer that has these names, or nothing."""
        name = member.name.removeprefix("./").strip("/")
        if name in here or (member.islnk() and member.linkname not in here):
            return
        parts = name.split("/")
        for end in range(1, len(parts)):
            above = "/".join(parts[:end])
            if above not in here and self._chance(self._with_directories):
                here.add(above)
                yield self._member(above, tarfile.DIRTYPE, 0o755)
        here.add(name)
        yield member

    def _written(self, member: tarfile.TarInfo) -> bytes:
        content = b""
        if member.isreg() and ".wh." not in member.name:
            content = b"%d" % self._random.randrange(10**6) * self._random.choice([0, 1, 1, 200])
        member.size = len(content)
        member.mtime = _TIME + self._random.randrange(_SPAN)
        if self._chance(0.3):
            member.mtime += self._random.choice([0.25, 0.5, 0.999])
        if self._chance(0.1):
            member.uid = 3_000_000
        format_ = self._random.choice(_FORMATS)
        if not (member.name + member.linkname).isascii() and format_ == tarfile.PAX_FORMAT:
            format_ = tarfile.GNU_FORMAT  # with pax's, tarfile has no way for what is no text
        self._about.append(
            f"  {member.type!r} {member.name!r} {member.linkname!r} {member.mode:o} {member.mtime}"
            f" format {format_}, {len(content)} bytes"
        )
        try:
            header = member.tobuf(format_, errors="surrogateescape")
        except ValueError:  # this one cannot say it
            header = member.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")
        return header + content + bytes(-len(content) % _BLOCK)

    def _file(self) -> tarfile.TarInfo:
        return self._new(tarfile.REGTYPE, [0o644, 0o755, 0o4755, 0o600, 0])

    def _directory(self) -> tarfile.TarInfo:
        member = self._new(tarfile.DIRTYPE, [0o755, 0o700, 0o1777, 0o2775, 0o555])
        self._ways.append(self._named[-1])
        member.name += self._random.choice(["", "/"])
        return member

    def _fifo(self) -> tarfile.TarInfo:
        return self._new(tarfile.FIFOTYPE, [0o644])

    def _device(self) -> tarfile.TarInfo:
        member = self._new(tarfile.CHRTYPE, [0o666])
        member.devmajor, member.devminor = 1, 3
        return member

    def _symlink(self) -> tarfile.TarInfo:
        member = self._new(tarfile.SYMTYPE, [0o777])
        self._ways.append(self._named[-1])
        member.linkname = self._random.choice([*_TARGETS, *self._names, self._path(), self._path()])
        return member

    def _hard_link(self) -> tarfile.TarInfo:
        if not self._leaves and not self._careless:
            return self._file()
        known = self._path() if self._careless else self._random.choice(self._leaves)
        member = self._new(tarfile.LNKTYPE, [0o644])
        member.linkname = known
        return member

    def _whiteout(self) -> tarfile.TarInfo:
        known = self._random.choice(self._named) if self._named else self._path()
        above, slash, last = (known if self._chance(0.7) else self._path()).rpartition("/")
        return self._member(f"{above}{slash}.wh.{last}", tarfile.REGTYPE, 0o644)

    def _opaque(self) -> tarfile.TarInfo:
        above = self._random.choice(["", self._path(), self._path()])
        return self._member(f"{above}/.wh..wh..opq".lstrip("/"), tarfile.REGTYPE, 0o644)

    def _new(self, kind: bytes, modes: list[int]) -> tarfile.TarInfo:
        path = self._path()
        self._named.append(path)
        if path in self._leaves:
            self._leaves.remove(path)
        if kind in (tarfile.REGTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            self._leaves.append(path)
        return self._member(path, kind, self._random.choice(modes))

    def _member(self, path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        if not self._tidy and self._chance(0.1):
            path = f"{self._random.choice([*self._names, '..'])}/../{path}"
        member = tarfile.TarInfo(self._random.choice(["", "", "", "./", "/"]) + path)
        member.type, member.mode = kind, mode
        return member

    def _path(self) -> str:
        if self._careless:
            return "/".join(self._random.choices(self._names, k=self._random.randint(1, 3)))
        if self._named and self._chance(0.2):
            return self._random.choice(self._named)
        name = self._random.choice(self._names)
        # Not through what is a file now.
        above = self._random.choice(["", *(way for way in self._ways if way not in self._leaves)])
        return f"{above}/{name}" if above else name

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability
