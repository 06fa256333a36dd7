"""The accounts that fetch: the unprivileged one, or the job's user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hpcimg.errors import ConfigError, NodeError

DEFAULT = "hpcimg"


class Account(NamedTuple):
    """The uid, gid and groups that a fetch runs with."""

    uid: int
    gid: int
    groups: tuple[int, ...]


class User(NamedTuple):
    """A job's user. `gid` is the group that Slurm vouches for, None if Slurm does not say."""

    uid: int
    gid: int | None = None


ROOT = User(0)


def unprivileged(name: str) -> Account | None:
    """Return the account that fetches shared images; None if we are not root.

    `name` is the configured account; "" means hpcimg. There is no fallback: other processes of the
    account could inspect those that fetch and convert. Raises ConfigError if the account does not
    exist, or if it or its group is root.
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
    """Access files with an account's rights for a while; None changes nothing.

    For a single-threaded process. Do not run a user's code with it: the way back is open.
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
    """Return a user's own account; None if we are not root and so are that user already.

    A user without an account on this node, as with Slurm's nss_slurm while Prolog runs, has only
    the group `gid`, which Slurm vouches for. Nobody gets root's group. Raises NodeError.
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
