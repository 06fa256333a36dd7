"""Which account fetches: the unprivileged one, or a job's user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hpcimg.errors import ConfigError, NodeError

DEFAULT = "hpcimg"


class Account(NamedTuple):
    """The rights that a fetch keeps."""

    uid: int
    gid: int
    groups: tuple[int, ...]


class User(NamedTuple):
    """A job's user. `gid` is the group that Slurm vouches for, None where it says none."""

    uid: int
    gid: int | None = None


ROOT = User(0)


def unprivileged(name: str) -> Account | None:
    """Return the account that fetches what all may read; None where we are not root.

    `name` is the configured account; "" takes hpcimg. There is no other to fall back to:
    whoever else runs as it could look into what fetches and converts. Raises
    ConfigError where there is none, or where it or its group is root.
    """
    if os.geteuid() != 0:
        return None
    name = name or DEFAULT
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(
            f"[stage] account: there is no account {name} on this node",
            do=f"Create it: useradd --system --no-create-home --shell /usr/sbin/nologin {name}",
        ) from None
    if 0 in (found.pw_uid, found.pw_gid):
        whose = "is root" if found.pw_uid == 0 else f"is {name}, which has root's group"
        raise ConfigError(f"[stage] account {whose}", do="Name an unprivileged account.")
    return Account(found.pw_uid, found.pw_gid, ())


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


def of_user(uid: int, gid: int | None = None) -> Account | None:
    """Return a user's own rights; None where we are not root and so are that user already.

    A user whom this node does not know, as with Slurm's nss_slurm while Prolog runs, has
    the group `gid`, which Slurm vouches for, and no other. Root's group is nobody's.
    Raises NodeError.
    """
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        if gid is None:
            raise NodeError(f"uid {uid} has no account on this node") from None
        groups = [gid]
    else:
        gid = found.pw_gid
        groups = os.getgrouplist(found.pw_name, gid)
    if 0 in (uid, gid):
        raise NodeError(f"refusing to read as uid {uid} with gid {gid}", why="that is root's")
    return Account(uid, gid, tuple(g for g in groups if g not in (0, gid)))
