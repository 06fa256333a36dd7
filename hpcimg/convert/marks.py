"""Names in a layer that mark removed files: OCI image specification, layer.md, "Whiteouts".

What Docker took over from aufs is left out: https://aufs.sourceforge.net, "Whiteout".
"""

from __future__ import annotations

from enum import Enum, auto


class Mark(Enum):
    """The meaning of a name."""

    NONE = auto()  # it is the name of a file
    WHITEOUT = auto()
    OPAQUE = auto()
    AUFS = auto()  # left out, but hard links may lead there


MARK = b".wh."  # a name without it is a file's
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_FILE = Mark.NONE, b""
_AUFS = Mark.AUFS, b""


def read(name: bytes) -> tuple[Mark, bytes]:
    """Return the meaning of a name, and the path that it applies to."""
    if MARK not in name:
        return _FILE
    directory, slash, last = name.rpartition(b"/")
    if directory.startswith(_META) or b"/" + _META in directory:
        return _AUFS
    if last == _OPAQUE:
        return Mark.OPAQUE, directory
    if not last.startswith(MARK):
        return _FILE
    hidden = last[len(MARK) :]
    if hidden.startswith(MARK) or hidden in (b"", b".", b".."):
        return _AUFS
    return Mark.WHITEOUT, directory + slash + hidden
