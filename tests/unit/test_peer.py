"""The job of a process, by its cgroups."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from hpcimg.errors import Interrupted, NotAllowed
from hpcimg.slurm import peer

UID = 1000
SCOPE = "/system.slice/slurmstepd.scope"
USERS = f"/user.slice/user-{UID}.slice/user@{UID}.service"


@pytest.mark.parametrize(
    "path",
    [
        f"{SCOPE}/job_7/step_0/user/task_0",
        f"{SCOPE}/job_7/step_batch/slurm",
        f"{SCOPE}/job_7/step_extern/user/task_special",
        f"{SCOPE}/job_7",
        "/system.slice/n1_slurmstepd.scope/job_7/step_0/user/task_0",
        "/slurm.slice/slurm-jobs.slice/slurmstepd.scope/job_7/step_0",
        # What its user may have made below counts for nothing.
        f"{SCOPE}/job_7/step_0/user/task_0/system.slice/slurmstepd.scope/job_8/step_0",
        f"{SCOPE}/job_7/step_0/job_8",
    ],
)
def test_cgroup_v2(path: str) -> None:
    assert peer.from_cgroups(f"0::{path}\n", UID) == "7"


@pytest.mark.parametrize(
    "line",
    [
        f"0::{USERS}/app.slice/job_7/step_0",
        f"0::{USERS}{SCOPE}/job_7/step_0",
        f"0::{USERS}/slurmstepd.scope/job_7/step_0",
        "0::/user.slice/slurmstepd.scope/job_7/step_0",
        f"0::/system.slice/other.service{SCOPE}/job_7/step_0",
        "0::/system.slice/docker-1.scope/slurmstepd.scope/job_7/step_0",
        f"0::/../..{SCOPE}/job_7/step_0",
        "0::/slurmstepd.scope/job_7/step_0",
        "0::/system.slice/my-slurmstepd.scope/job_7/step_0",
        f"0::{SCOPE}/job_7x/step_0",
        f"0::{SCOPE}/job_\u0667/step_0",
        f"0::{SCOPE}/system/job_7",
        f"0::{SCOPE}",
        "0::/",
        f"1:name=systemd:/slurm/uid_{UID}/job_7/step_0",
        f"4:memory:/user/slurm/uid_{UID}/job_7/step_0",
        f"4:memory,name=systemd:/slurm/uid_{UID}/job_7/step_0",
        "",
    ],
)
def test_what_is_no_job(line: str) -> None:
    assert peer.from_cgroups(f"{line}\n", UID) == ""


def test_cgroup_v1() -> None:
    lines = [
        f"9:freezer:/slurm/uid_{UID}/job_7/step_0",
        f"4:cpu,cpuacct:/slurm_n1/uid_{UID}/job_7/step_batch/task_0",
        "1:name=systemd:/system.slice/slurmd.service",
        "0::/system.slice/slurmd.service",
    ]
    assert peer.from_cgroups("\n".join(lines), UID) == "7"
    with pytest.raises(NotAllowed, match="job 7 is another user's"):
        peer.from_cgroups(lines[0], UID + 1)
    with pytest.raises(NotAllowed, match="in several jobs: 7, 8"):
        peer.from_cgroups(f"{lines[0]}\n0::{SCOPE}/job_8/step_0", UID)


def test_a_process_that_has_ended_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PID may have been reused by a process in another cgroup."""
    ours, theirs = socket.socketpair()
    with ours, theirs, peer.connected_to(ours) as who:
        assert (who.pid, who.uid, who.gid) == (os.getpid(), os.geteuid(), os.getegid())
        assert who.alive()
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        pidfd = os.pidfd_open(process.pid)
        other = who._replace(pidfd=pidfd)
        monkeypatch.setattr(peer, "from_cgroups", lambda *_: "7")
        assert peer.job_of(other) == "7"
        process.communicate()
        with pytest.raises(Interrupted, match="has ended"):
            peer.job_of(other)
        os.close(pidfd)


@pytest.mark.parametrize("number", [errno.ENOPROTOOPT, errno.ESRCH])
def test_kernels_that_do_not_know_the_descriptor_of_a_peer(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Connection(socket.socket):
        def getsockopt(self, level: int, name: int, *size: int) -> Any:
            if name == peer._SO_PEERPIDFD:
                raise OSError(number, os.strerror(number))
            return super().getsockopt(level, name, *size)

    ours, theirs = socket.socketpair()
    with Connection(fileno=ours.detach()) as connection, theirs:
        if number == errno.ESRCH:  # they know it, and say that the process has ended
            with pytest.raises(Interrupted), peer.connected_to(connection):
                pass
            return
        with peer.connected_to(connection) as who:
            assert (who.pid, who.alive()) == (os.getpid(), True)
        monkeypatch.setattr(peer.processes, "is_older", lambda *_: False)
        with pytest.raises(Interrupted), peer.connected_to(connection):
            pass


def test_who_has_connected_and_ended_is_nobody() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0hpcimg-test-" + os.urandom(8).hex())
        server.listen()
        program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        name = server.getsockname().decode().replace("\0", "@")
        program = program.replace("sys.argv[1]", "sys.argv[1].replace('@', chr(0))")
        subprocess.run([sys.executable, "-c", program, name], check=True)
        connection, _ = server.accept()
        with connection:
            try:
                with peer.connected_to(connection) as who:
                    assert not who.alive()
            except Interrupted:
                pass  # the process is reaped, and an older kernel has no descriptor of it
