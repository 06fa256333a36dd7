"""Checks for the tests on a real cluster, and a gate where their jobs wait."""

from __future__ import annotations

import os
from pathlib import Path

from tests.parts.daemon import wait_until
from tests.parts.site import Site


class Gate:
    """A gate where one job at a time waits until the test releases it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        path.chmod(0o644)
        self._path = path
        # The lines of a batch script.
        self.wait = f"echo at the gate\nread -r _ <{path}"

    def reached(self, site: Site, job: int) -> None:
        """Wait until the job is at the gate."""
        wait_until(
            lambda: "at the gate" in site.cluster.output(job),
            what=f"job {job} at the gate",
        )

    def open(self) -> None:
        """Release the job at the gate; blocks until there is one."""
        self._path.write_text("\n")


def completed(site: Site, *jobs: int) -> list[str]:
    """Wait for jobs that must complete; return the output of each."""
    states = [site.cluster.wait(job) for job in jobs]
    outputs = [site.cluster.output(job) for job in jobs]
    assert states == ["COMPLETED"] * len(jobs), outputs
    return outputs


def failed(site: Site, job: int) -> str:
    """Wait for a job that its task prolog fails, without draining a node; return its output."""
    assert site.cluster.wait(job) == "FAILED", site.cluster.output(job)
    assert site.cluster.job(job)["ExitCode"] == "1:0"
    undrained(site)
    return site.cluster.output(job)


def undrained(site: Site) -> None:
    """Check that Slurm has drained no node."""
    assert set(site.cluster.node_reasons().values()) == {"none"}


def settled(site: Site) -> None:
    """See that no job is left, and that those there were have left nothing on any node.

    What a test that failed left is put right, for the sake of the next one.
    """
    listing = ["squeue", "--noheader", "--states=pending,running", "--format=%i"]
    left = site.cluster.run(listing).stdout.split()
    for job in left:
        site.cluster.scancel(int(job))
        site.cluster.wait(int(job))
    drained = [name for name, reason in site.cluster.node_reasons().items() if reason != "none"]
    for name in drained:
        site.cluster.resume(name)
    assert (left, drained) == ([], [])
    # A job that srun or salloc started may still have its Epilog before it.
    wait_until(
        lambda: set(site.cluster.node_states().values()) == {"idle"},
        what="all nodes to be idle",
    )
    for name in site.cluster.nodes:
        node = site.node(name)
        assert (node.leases(), node.jobs(), node.leftovers()) == (set(), [], [])
