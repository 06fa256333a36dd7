"""Jobs, nodes and processes that end prematurely, and how that is repaired."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.parts.daemon import wait_until
from tests.parts.site import Site
from tests.slurm.checks import Gate, completed, failed

SIZE = 1 << 20


@contextmanager
def held(site: Site, name: str, *nodes: str) -> Iterator[tuple[str, list[int]]]:
    """Yield the address of an image whose download has stopped, and jobs that wait for it."""
    url = site.put(name, size_bytes=SIZE)
    with site.web.hold(f"/{name}.sif", after_bytes=SIZE // 2) as hold:
        jobs = [submit(site, url, node) for node in nodes]
        hold.wait_reached()
        yield url, jobs


def submit(site: Site, url: str, node: str, *, before: str = "") -> int:
    """Submit a job that prints the "hello" of its image."""
    script = f'{before}\n{site.read_image} "$HPCIMG_IMAGE" hello'
    return site.cluster.sbatch(script, f"--nodelist={node}", f"--comment=container:{url}")


def staging_process(site: Site, node: str) -> int:
    """Return the pid of the Prolog that fetches."""
    [work] = site.status(node)["staging"]
    return int(work["process"].split("-")[1])


# Cancelled and requeued jobs


@pytest.mark.parametrize("role", ["fetches", "waits"])
def test_a_job_is_cancelled_while_another_waits_for_the_same(site: Site, role: str) -> None:
    with held(site, role, "n1", "n1") as (url, jobs):
        [work] = site.status("n1")["staging"]
        fetching = int(work["job"])
        [waiting] = set(jobs) - {fetching}
        wait_until(
            lambda: f"job {waiting} waits for {url}" in site.node("n1").log(),
            what=f"job {waiting} to wait",
        )
        cancelled, other = (fetching, waiting) if role == "fetches" else (waiting, fetching)
        site.cluster.scancel(cancelled)
    assert completed(site, other) == [f"{role}\n"]
    assert site.cluster.wait(cancelled) == "CANCELLED"
    assert site.cluster.output(cancelled) == ""
    # Slurm 22.05 lets the Prolog of a cancelled job run to its end; where it is killed, the one
    # that waits fetches instead.
    assert site.web.count("GET", f"/{role}.sif") <= (2 if role == "fetches" else 1)


def test_a_requeued_job_gets_its_image_again(site: Site) -> None:
    url, gate = site.put("requeued"), Gate(site.directory / "requeue.gate")
    job = submit(site, url, "n1", before=f'[ -n "$SLURM_RESTART_COUNT" ] || {{ {gate.wait}\n}}')
    gate.reached(site, job)
    site.cluster.scontrol("requeue", str(job))
    [output] = completed(site, job)
    assert output.splitlines()[-1] == "requeued"
    assert site.cluster.job(job)["Restarts"] == "1"
    assert site.web.count("GET", "/requeued.sif") == 1


# Killed processes


@pytest.mark.parametrize("which", ["prolog", "fetch"])
def test_a_killed_prolog_fails_its_job_and_not_the_node(site: Site, which: str) -> None:
    name = f"killed-{which}"
    with held(site, name, "n1") as (url, [job]):
        pid = staging_process(site, "n1")
        if which == "fetch":
            [pid] = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        os.kill(pid, signal.SIGKILL)
        said = failed(site, job)
    assert said.startswith("hpcimg: ")
    assert {"prolog": "interrupted", "fetch": "killed by signal 9"}[which] in said
    assert "Submit the job again" in said
    assert site.node("n1").leftovers() == []
    assert completed(site, submit(site, url, "n1")) == [f"{name}\n"]


def test_when_the_whole_hook_is_killed_slurm_drains_the_node(site: Site) -> None:
    """No shell is left to exit 0, so Slurm considers the node broken. A resume repairs that."""
    with held(site, "all-killed", "n2") as (url, [job]):
        os.killpg(os.getpgid(staging_process(site, "n2")), signal.SIGKILL)
        wait_until(lambda: site.cluster.node_states()["n2"] == "drained", what="drain")
        assert site.cluster.node_reasons()["n2"] == "Prolog error"
        fields = site.cluster.job(job)
        site.cluster.scancel(job)
        site.cluster.resume("n2")
    assert (fields["JobState"], fields["Restarts"]) == ("PENDING", "1"), fields
    assert completed(site, submit(site, url, "n2")) == ["all-killed\n"]


# Nodes that go down


def reboot(site: Site, node: str) -> None:
    """Stop a node and start it again with an empty tmpfs."""
    site.cluster.stop_node(node)
    shutil.rmtree(site.node(node).state)
    site.cluster.start_node(node)


def test_images_outlive_a_reboot(site: Site) -> None:
    url, gate = site.put("durable"), Gate(site.directory / "reboot.gate")
    options = ["--nodelist=n3", "--no-requeue", f"--comment=container:{url}"]
    lost = site.cluster.sbatch(gate.wait, *options)
    gate.reached(site, lost)
    reboot(site, "n3")
    # 26.05 may find the killed batch script before it finds the node rebooted.
    assert site.cluster.wait(lost) in ("NODE_FAIL", "FAILED")
    assert completed(site, submit(site, url, "n3")) == ["durable\n"]
    assert site.web.count("GET", "/durable.sif") == 1


def test_a_download_that_a_reboot_cut_off_begins_anew(site: Site) -> None:
    with held(site, "cut-off", "n3") as (url, [job]):
        site.cluster.scontrol("update", f"jobid={job}", "requeue=0")
        reboot(site, "n3")
        [half] = site.node("n3").leftovers()
        assert half.stat().st_size <= SIZE // 2
    assert site.cluster.wait(job) == "NODE_FAIL"
    assert completed(site, submit(site, url, "n3")) == ["cut-off\n"]


# What no Epilog dropped


def test_gc_drops_the_leases_of_jobs_that_slurm_knows_no_more(site: Site) -> None:
    url, gate = site.put("leased"), Gate(site.directory / "gc.gate")
    node = site.node("n1")
    running = submit(site, url, "n1", before=gate.wait)
    ended = submit(site, url, "n2")
    gate.reached(site, running)
    completed(site, ended)
    unknown = 4_000_000
    for job in ended, unknown:
        node.stage(job, f"container:{url}")
    assert {int(job) for _, job in node.leases()} == {running, ended, unknown}
    assert "ended" in node.hpcimg("gc", "--dry-run").stdout
    assert set(node.hpcimg_json("gc")["ended_jobs"]) == {str(ended), str(unknown)}
    assert [int(job) for _, job in node.leases()] == [running]
    gate.open()
    completed(site, running)
