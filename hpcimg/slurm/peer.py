"""Who is at the other end of a unix socket, and in which job: as the kernel and Slurm have it.

Nothing here rests on what a process says. Its uid is from SO_PEERCRED. Its job is that of its
cgroup, which Slurm makes as root, and which nobody else can enter or leave; where Slurm makes
none, `scontrol pidinfo` asks the slurmd of this node. The number of a process is somebody
else's once that process has ended: so an answer counts only if the process is seen alive
afterwards, by a descriptor of it (pidfd_open(2)).
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
# As Slurm's cgroup/v2 and cgroup/v1 name them, from the root of the hierarchy: below it, anybody
# who was given a part of it names directories as they like, and below a job's, so may its user.
# A node's own name is in it where several slurmd share a host.
_V2 = re.compile(
    r"0::(?!/user\.slice/)(?:/[^/]+\.slice)+/(?:[\w.-]+_)?slurmstepd\.scope/job_([0-9]+)/"
)
_V1 = re.compile(r"\d+:([\w,]+):/slurm(?:_[\w.-]+)?/uid_([0-9]+)/job_([0-9]+)/")
_CONTROLLERS = {"freezer", "memory", "cpuset", "devices", "cpu", "cpuacct"}
_ASK_S = 15.0
_PIDINFO = re.compile(r"Slurm job ?id[= ]([0-9]+) ", re.IGNORECASE)


class Peer(NamedTuple):
    """A process that has connected, and the rights it had then; `pidfd` is a descriptor of it."""

    pid: int
    uid: int
    gid: int
    pidfd: int

    def alive(self) -> bool:
        """Tell whether it has not ended, so that its number is its own."""
        return not select.select([self.pidfd], [], [], 0)[0]


@contextmanager
def connected_to(connection: socket.socket) -> Iterator[Peer]:
    """Give who connected to a unix socket. Raises Interrupted where that has ended."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    if pid <= 0:  # it is in no namespace that this process can see into
        raise _not_in_a_job()
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        # Where the kernel knows it and the process has ended, its number may be another's by now.
        if error.errno != errno.ENOPROTOOPT:
            raise _gone() from None
        pidfd = _open_older(pid)
    try:
        yield Peer(pid, uid, gid, pidfd)
    finally:
        os.close(pidfd)


def _open_older(pid: int) -> int:
    """Return a descriptor of a process that is older than this one, as who connected has to be."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        raise _gone() from None
    if not processes.is_older(pid, os.getpid()):
        os.close(pidfd)
        raise _gone()
    return pidfd


def job_of(peer: Peer) -> str:
    """Return the job that a process belongs to.

    Raises NotAllowed where it is in none, or in one of another user, Interrupted where it has
    ended, and what asking Slurm raises.
    """
    job = job_by_cgroup(peer) or _from_slurm(peer.pid)
    if not peer.alive():
        raise _gone()
    if not job:
        raise _not_in_a_job()
    return job


def job_by_cgroup(peer: Peer) -> str:
    """Return the job whose cgroup a process is in, "" for none. Raises likewise."""
    try:
        with open(f"/proc/{peer.pid}/cgroup", encoding="utf-8", errors="replace") as file:
            job = from_cgroups(file.read(), peer.uid)
    except OSError:
        raise _gone() from None
    if not peer.alive():
        raise _gone()
    return job


def from_cgroups(text: str, uid: int) -> str:
    """Return the job that what /proc/PID/cgroup says belongs to, "" for none.

    Raises NotAllowed where that is another user's, or where hierarchies name several.
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
    """Return the job that the node's slurmd knows a process in, "" for none."""
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
