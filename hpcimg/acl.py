"""POSIX access control lists that let one more user read a file or directory, and nothing else.

The owner stays the same: if the file were given to the user, that user could also change it. See
acl(5); the layout of the attribute is that of include/uapi/linux/posix_acl_xattr.h in the kernel.

Imports only errno and posix: on a cache hit, the job's files are written with it.
"""

import errno
import posix

_NAME = "system.posix_acl_access"
_VERSION = 2
_READ, _WRITE, _EXECUTE = 4, 2, 1
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF  # the entry is not for a particular user


def let_read(descriptor: int, uid: int) -> None:
    """Let the file's owner and the user `uid` read it, and nobody else.

    ls(1) shows mode 0440 and a `+`. Call it last: a later chmod changes the user's permissions.
    Raises OSError, with EOPNOTSUPP if the file system has no access control lists.
    """
    _set(descriptor, uid, owner=_READ, user=_READ)


def let_enter(path: str, uid: int) -> None:
    """Let the user `uid` list and enter a directory, which keeps its owner. Raises OSError."""
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
    posix.setxattr(file, _NAME, packed)


def supported(path: str | int) -> bool:
    """Tell whether the file system of a file supports access control lists."""
    try:
        posix.getxattr(path, _NAME)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True
