"""Files that appear complete or not at all.

Imports only errno and posix: on a cache hit, the job's files are written with it.
"""

import errno
import posix

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
    temp = temp or f"{path}.{posix.getpid()}.new"
    # O_NOFOLLOW without O_EXCL: a leftover of a killed process with our pid is reused, a planted
    # link is not followed.
    descriptor = posix.open(
        temp, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW, 0o600
    )
    try:
        try:
            data = text.encode("utf-8", "surrogateescape")
            while data:
                data = data[posix.write(descriptor, data) :]
            posix.fchmod(descriptor, mode)
            if reader is not None and reader != posix.geteuid():
                _let_read(descriptor, reader)
            if durable:
                posix.fsync(descriptor)
        finally:
            posix.close(descriptor)
        posix.rename(temp, path)
    except BaseException:
        remove(temp)
        raise
    if durable:
        import os  # a hit flushes nothing

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
        posix.fchown(descriptor, -1, group)
        posix.fchmod(descriptor, 0o440)


def sync_directory(path: str) -> None:
    """Flush a directory's entries to disk: before that, a rename is not durable."""
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY)
    try:
        posix.fsync(descriptor)
    finally:
        posix.close(descriptor)


def remove(path: str) -> bool:
    """Unlink a file; return whether it was there."""
    try:
        posix.unlink(path)
    except FileNotFoundError:
        return False
    return True
