"""Identify the process at the other end of a unix socket, and its job.

Nothing depends on what the process says. Its uid comes from SO_PEERCRED. Its job comes from its
cgroup, which Slurm creates as root, and which no other user can enter or leave; if Slurm creates
no cgroups, `scontrol pidinfo` asks the node's slurmd. A PID is reused once its process has ended:
so an answer counts only if the process is found alive afterwards, by its pidfd (pidfd_open(2)).
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hpcimg import processes
from hpcimg.errors import Interrupted, NotAllowed

_SO_PEERPIDFD = 77  # Linux 6.5; the socket module does not name it yet
_CREDENTIALS = struct.Struct("iII")
# The names of Slurm's cgroup/v2 and cgroup/v1, from the root of the hierarchy: in a delegated
# part of it, and below a job's cgroup, users choose the names. The node's name precedes them if
# several slurmd share a host.
_V2 = re.compile(
    r"0::(?!/user\.slice/)(?:/[^/]+\.slice)+/(?:[\w.-]+_)?slurmstepd\.scope/job_([0-9]+)/"
)
_V1 = re.compile(r"\d+:([\w,]+):/slurm(?:_[\w.-]+)?/uid_([0-9]+)/job_([0-9]+)/")
_CONTROLLERS = {"freezer", "memory", "cpuset", "devices", "cpu", "cpuacct"}
_ASK_S = 15.0
# Since 26.05 with the step, as in JobId=7.0.
_PIDINFO = re.compile(r"Slurm job ?id[= ]([0-9]+)(?:\.\w+)? ", re.IGNORECASE)


class Peer(NamedTuple):
    """A connected process, with the uid and gid that it had at that time, and its pidfd."""

    pid: int
    uid: int
    gid: int
    pidfd: int

    def alive(self) -> bool:
        """Tell whether it has not ended, so that its PID has not been reused."""
        return not select.select([self.pidfd], [], [], 0)[0]


@contextmanager
def connected_to(connection: socket.socket) -> Iterator[Peer]:
    """Yield the process that connected to a unix socket. Raises Interrupted if it has ended."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    if pid <= 0:  # its PID namespace is not visible to this process
        raise _not_in_a_job()
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        # The kernel has the option: so the process has ended, and its PID may have been reused.
        if error.errno != errno.ENOPROTOOPT:
            raise _gone() from None
        pidfd = _open_older(pid)
    try:
        yield Peer(pid, uid, gid, pidfd)
    finally:
        os.close(pidfd)


def _open_older(pid: int) -> int:
    """Return the pidfd of a process older than this one, as the connected process must be."""
    try:
        pidfd = processes.open_pidfd(pid)
    except OSError:
        raise _gone() from None
    if not processes.is_older(pid, os.getpid()):
        os.close(pidfd)
        raise _gone()
    return pidfd


def job_of(peer: Peer) -> str:
    """Return the job that a process belongs to.

    Raises NotAllowed if it is in none or in another user's, Interrupted if it has ended, and the
    errors of a query to Slurm.
    """
    job = job_by_cgroup(peer) or _from_slurm(peer.pid)
    if not peer.alive():
        raise _gone()
    if not job:
        raise _not_in_a_job()
    return job


def job_by_cgroup(peer: Peer) -> str:
    """Return the job whose cgroup a process is in, "" for none. Raises NotAllowed, Interrupted."""
    try:
        with open(f"/proc/{peer.pid}/cgroup", encoding="utf-8", errors="replace") as file:
            job = from_cgroups(file.read(), peer.uid)
    except OSError:
        raise _gone() from None
    if not peer.alive():
        raise _gone()
    return job


def from_cgroups(text: str, uid: int) -> str:
    """Return the job named in the text of /proc/PID/cgroup, "" for none.

    Raises NotAllowed if it is another user's, or if the hierarchies name several.
    """
    found = set()
    for line in text.splitlines():
        if match := _V2.match(f"{line}/"):
            found.add(match[1])
        elif (match := _V1.match(f"{line}/")) and _CONTROLLERS.issuperset(match[1].split(",")):
            if int(match[2]) != uid:
                raise NotAllowed(f"job {match[3]} is another user's")
            found.add(match[3])
    if len(found) > 1:
        raise NotAllowed(f"this process is in several jobs: {', '.join(sorted(found))}")
    return found.pop() if found else ""


def _from_slurm(pid: int) -> str:
    """Return the job of a process according to the node's slurmd, "" for none."""
    from hpcimg.slurm import query

    done = query.run(["scontrol", "pidinfo", str(pid)], timeout_s=_ASK_S)
    match = _PIDINFO.match(done.stdout.lstrip())
    return match[1] if match else ""


def _gone() -> Interrupted:
    return Interrupted("the requesting process has ended")


def _not_in_a_job() -> NotAllowed:
    return NotAllowed(
        "only a process of a job on this node can have images staged",
        do="Run it inside a job, or request the image when you submit one.",
    )
