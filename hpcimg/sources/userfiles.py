"""Small files in the home of the user that we run as, such as credentials."""

from __future__ import annotations

import os
import pwd
import stat

_MAX = 1 << 20


def home() -> str:
    """Return the home that the account has, never $HOME; "" for a uid without an account."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def read(path: str) -> str:
    """Return the text of a file of at most 1 MiB.

    Raises OSError, and ValueError, with what is wrong, for what is no such file.
    """
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no plain file")
        data = file.read(_MAX + 1)
    if len(data) > _MAX:
        raise ValueError("it is larger than 1 MiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
