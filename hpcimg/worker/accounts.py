"""Which account fetches: the unprivileged one, or a job's user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hpcimg.errors import ConfigError, NodeError


class Account(NamedTuple):
    """The rights that a fetch keeps."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def unprivileged(name: str) -> Account | None:
    """Return the account that fetches what all may read; None where we are not root.

    `name` is the configured account; "" takes hpcimg, or else nobody. Raises
    ConfigError where there is none, or where it is root.
    """
    if os.geteuid() != 0:
        return None
    for candidate in [name] if name else ["hpcimg", "nobody"]:
        try:
            found = pwd.getpwnam(candidate)
        except KeyError:
            continue
        if found.pw_uid == 0:
            raise ConfigError("[stage] account is root", do="Name an unprivileged account.")
        return Account(found.pw_uid, found.pw_gid, ())
    raise ConfigError(
        f"[stage] account: there is no account {name or 'hpcimg or nobody'}",
        do="Create it: useradd --system --no-create-home --shell /usr/sbin/nologin hpcimg",
    )


@contextmanager
def acting_as(account: Account | None) -> Iterator[None]:
    """Look at files with an account's rights for a while; None changes nothing.

    For a process of one thread. Not to run anything of a user's: the way back is open.
    """
    if account is None:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups(account.groups)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def of_user(uid: int) -> Account | None:
    """Return a user's own rights; None where we are not root and so are that user already."""
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        raise NodeError(f"uid {uid} has no account on this node") from None
    groups = os.getgrouplist(found.pw_name, found.pw_gid)
    return Account(uid, found.pw_gid, tuple(g for g in groups if g != 0))
