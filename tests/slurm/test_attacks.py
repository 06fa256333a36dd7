"""Attacks by a user with a job on a node, against the node and other users, on a real cluster."""

from __future__ import annotations

import pwd
import shlex
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.parts import hungmount
from tests.parts.daemon import wait_until
from tests.parts.site import Site
from tests.parts.slurmclient import USERS
from tests.slurm.checks import Gate, completed, failed, undrained

ATTACKER, OTHER = USERS[:2]
SETTINGS = "[stage]\ndeadline = 5s\n[policy]\non_node_fault = drain\n"


def place(site: Site, name: str) -> Path:
    """Return a new directory that everybody can enter."""
    path = site.directory / name
    path.mkdir()
    path.chmod(0o755)
    return path


def test_a_file_system_that_never_answers(site: Site) -> None:
    site.configure(SETTINGS)
    image = site.put("others")
    with ExitStack() as stack:
        try:
            uid = pwd.getpwnam(ATTACKER).pw_uid
            mount = stack.enter_context(hungmount.mounted(place(site, "hung"), uid))
        except OSError as error:
            pytest.skip(f"no FUSE here: {error}")
        comment = f"--comment=container:{mount}/x.sif"
        hung = [
            site.cluster.sbatch("true", f"--nodelist={name}", comment, user=ATTACKER)
            for name in ("n1", "n2")
        ]
        for job in hung:
            said = failed(site, job)
            assert "x.sif was not ready in time" in said
            assert "cannot be ended" in said
        options = ("--nodelist=n1", f"--comment=container:{image}")
        completed(site, site.cluster.sbatch("true", *options, user=OTHER))
    undrained(site)


def test_a_file_system_that_answers_no_more(site: Site) -> None:
    """For a cached image, whose file is checked for each job: the copy is used."""
    # Long enough for the first fetches on a busy machine, and until the copy is taken.
    site.configure(SETTINGS.replace("deadline = 5s", "deadline = 20s"))
    directory = place(site, "later")
    image = directory / "mount" / "x.sif"
    image.parent.mkdir()
    site.image("mine").rename(image)
    image.chmod(0o600)
    shutil.chown(image, ATTACKER)
    options = ("--nodelist=n1", f"--comment=container:{image}")
    for _ in range(2):
        completed(site, site.cluster.sbatch("true", *options, user=ATTACKER))
    assert site.node("n1").hpcimg_json("status")["counts"]["hit"] == 1
    uid = pwd.getpwnam(ATTACKER).pw_uid
    with ExitStack() as stack:
        try:
            stack.enter_context(hungmount.mounted(directory, uid))
        except OSError as error:
            pytest.skip(f"no FUSE here: {error}")
        completed(site, site.cluster.sbatch("true", *options, user=ATTACKER))
    assert site.node("n1").hpcimg_json("status")["counts"]["stale"] == 1
    undrained(site)


def test_a_file_system_in_a_job_of_the_users(site: Site) -> None:
    site.configure(SETTINGS)
    mount = place(site, "mine")
    try:
        argv = [*hungmount.prepare(mount), str(mount)]
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    gate = Gate(site.directory / "gate")
    script = f"{shlex.join(argv)} & served=$!\n{gate.wait}\nkill -9 $served"
    server = site.cluster.sbatch(script, "--nodelist=n1", user=ATTACKER)
    gate.reached(site, server)

    def pids() -> list[str]:
        return [word for word in site.cluster.output(server).split() if word.isdigit()]

    wait_until(pids, what="the mount")
    [pid] = pids()
    comment = f"--comment=container:/proc/{pid}/root{mount}/x.sif"
    job = site.cluster.sbatch("true", "--nodelist=n1", comment, user=ATTACKER)
    # Who fetches sees its own processes alone.
    assert f"there is no file /proc/{pid}/root" in failed(site, job)
    gate.open()
    completed(site, server)
    undrained(site)
