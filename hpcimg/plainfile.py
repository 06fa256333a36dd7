"""Reading small files that others may have replaced by something else.

Imports only errno, posix and stat: on a cache hit, the configuration is read with it.
"""

import errno
import posix
import stat

_MAX = 1 << 20
_CHUNK = 1 << 16


def read(path: str, *, most: int = _MAX) -> bytes:
    """Return the content of a file of at most `most` bytes.

    Never blocks, neither on the writer of a FIFO nor on a lease on the file (fcntl(2)); a device is
    not opened. Raises OSError, and ValueError with the reason if it is not such a file.
    """
    seen = posix.open(path, posix.O_PATH)
    try:
        mode = posix.fstat(seen).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, posix.strerror(errno.EISDIR), path)
        if path == "/dev/null":  # counts as an empty file
            return b""
        if not stat.S_ISREG(mode):
            raise ValueError("it is not a regular file")
        try:
            file = posix.open(f"/proc/self/fd/{seen}", posix.O_RDONLY | posix.O_NONBLOCK)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
    finally:
        posix.close(seen)
    try:
        data = b""
        while more := posix.read(file, min(most + 1 - len(data), _CHUNK)):
            data += more
    finally:
        posix.close(file)
    if len(data) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return data


def read_text(path: str) -> str:
    """Return the text of such a file. Raises ValueError also if it is not UTF-8."""
    try:
        return read(path).decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
