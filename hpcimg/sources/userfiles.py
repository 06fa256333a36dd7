"""Small files in the home directory of the current user, such as credentials."""

from __future__ import annotations

import os
import pwd

from hpcimg.plainfile import read_text as read

__all__ = ["home", "read"]


def home() -> str:
    """Return the account's home directory, never $HOME; "" for a uid without an account."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""
