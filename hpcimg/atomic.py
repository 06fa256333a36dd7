"""Files that appear complete or not at all.

Imports only os and errno: on a cache hit, the job's files are written with it.
"""

import errno
import os

from hpcimg import acl


def write_file(
    path: str,
    text: str,
    *,
    temp: str = "",
    mode: int = 0o644,
    reader: int | None = None,
    durable: bool = False,
) -> None:
    """Write `text` to `path` by renaming `temp`, a new file on the same file system.

    Whoever opens `path` reads the old text or the new one, never a part. `mode` is set regardless
    of the umask. `reader` is a uid that may read the file in addition, but not change it. With
    `durable`, file and directory are flushed to disk. Raises OSError, and leaves nothing behind.
    """
    temp = temp or f"{path}.{os.getpid()}.new"
    # O_NOFOLLOW without O_EXCL: a leftover of a killed process with our pid is reused, a planted
    # link is not followed.
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            data = text.encode("utf-8", "surrogateescape")
            while data:
                data = data[os.write(descriptor, data) :]
            os.fchmod(descriptor, mode)
            if reader is not None and reader != os.geteuid():
                _let_read(descriptor, reader)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temp, path)
    except BaseException:
        remove(temp)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def _let_read(descriptor: int, uid: int) -> None:
    """Let only this user read the file, or the user's group where there are no ACLs."""
    try:
        acl.let_read(descriptor, uid)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        import pwd

        try:
            group = pwd.getpwuid(uid).pw_gid
        except KeyError:
            raise error from None
        os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, 0o440)


def sync_directory(path: str) -> None:
    """Flush a directory's entries to disk: before that, a rename is not durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> bool:
    """Unlink a file; return whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True
