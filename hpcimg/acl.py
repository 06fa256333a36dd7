"""POSIX access control lists: one user more who may read a file or directory, and nothing else.

The file stays its owner's: who could only be given a file to let him read it could
also change it. acl(5); the layout of the attribute is that of the kernel's
include/uapi/linux/posix_acl_xattr.h.

Imports only os and errno: the way to a warm hit writes the job's files with this.
"""

import errno
import os

_NAME = "system.posix_acl_access"
_VERSION = 2
_READ, _WRITE, _EXECUTE = 4, 2, 1
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF  # the entry is of no particular user


def let_read(descriptor: int, uid: int) -> None:
    """Let the file's owner and the user `uid` read it, and nobody else at all.

    ls(1) shows mode 0440 and a `+`. To be called last: a later chmod changes what the
    user may. Raises OSError, EOPNOTSUPP where the file system has no such lists.
    """
    _set(descriptor, uid, owner=_READ, user=_READ)


def let_enter(path: str, uid: int) -> None:
    """Let the user `uid` list and enter a directory, which stays its owner's. Raises likewise."""
    _set(path, uid, owner=_READ | _WRITE | _EXECUTE, user=_READ | _EXECUTE)


def _set(file: int | str, uid: int, *, owner: int, user: int) -> None:
    entries = (
        (_USER_OBJ, owner, _NOBODY),
        (_USER, user, uid),
        (_GROUP_OBJ, 0, _NOBODY),
        (_MASK, user, _NOBODY),
        (_OTHER, 0, _NOBODY),
    )
    packed = _VERSION.to_bytes(4, "little")
    for tag, permissions, who in entries:
        packed += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
        packed += who.to_bytes(4, "little")
    os.setxattr(file, _NAME, packed)


def supported(path: str | int) -> bool:
    """Tell whether the file system that a file is on has access control lists."""
    try:
        os.getxattr(path, _NAME)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True
