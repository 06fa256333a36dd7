"""What must hold for a file that is private to one user."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_OTHER = 3_999_998
# All ways in which a user could try to enlarge or replace the file.
_ATTACK = """
chmod u+w "$1"; chmod 0666 "$1"; chmod -R u+w "${1%/*}"
echo more >>"$1"; : >"$1"; rm -f "$1"; mv "$1" "$1.old"; ln "$1" "$1.link"; ln "$1" "/tmp/$$"
touch "${1%/*}/mine" "${1%/*/*}/mine"; mkdir "${1%/*}/mine"
setfacl -m "u:$(id -u):rw" "$1"
"""


def check_private(path: Path, uid: int) -> None:
    """Check that root owns the file, and that the user `uid` can read it and not change it."""
    seen, data, beside = path.lstat(), path.read_bytes(), sorted(os.listdir(path.parent))
    assert (seen.st_uid, seen.st_mode & 0o7777) == (0, 0o440)
    assert _as(uid, "cat", str(path)) == data
    assert _as(_OTHER, "cat", str(path)) is None
    _as(uid, "sh", "-c", _ATTACK, "sh", str(path))
    now = path.lstat()
    assert (now.st_ino, now.st_uid, now.st_mode, now.st_nlink) == (
        seen.st_ino, seen.st_uid, seen.st_mode, 1,
    )  # fmt: skip
    assert path.read_bytes() == data
    assert sorted(os.listdir(path.parent)) == beside


def _as(uid: int, *argv: str) -> bytes | None:
    """Return what a command prints when run by a user, None if it fails."""
    done = subprocess.run(
        argv, user=uid, group=uid, extra_groups=[], capture_output=True, check=False
    )
    return None if done.returncode else done.stdout
