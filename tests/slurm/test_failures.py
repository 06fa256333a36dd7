"""Each class of failure on a real cluster: what happens to the job and to the node."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.parts import docblocks
from tests.parts.daemon import wait_until
from tests.parts.node import PROLOG, ROOT
from tests.parts.site import Site
from tests.parts.slurmclient import job_fields
from tests.parts.webfaults import Status
from tests.slurm.checks import Gate, completed, failed, undrained

REQUEUE = "[policy]\non_transient = requeue\nmax_requeues = {}\n"


class Down(Status):
    """A server that cannot serve, request after request, and says not to come again soon."""

    sticky = True


def down(site: Site, name: str) -> None:
    site.web.script(f"/{name}.sif", [Down(503, retry_after="3600")])


def up(site: Site, name: str) -> None:
    site.web.script(f"/{name}.sif", [])


def submit(site: Site, url: str, *options: str, before: str = "") -> int:
    """Submit a job that prints the "hello" of its image, for node n1 by default."""
    script = f'{before}\n{site.read_image} "$HPCIMG_IMAGE" hello'
    return site.cluster.sbatch(
        script, *(options or ("--nodelist=n1",)), f"--comment=container:{url}"
    )


def restarts(site: Site, job: int | str) -> int:
    return int(job_fields(site.cluster.scontrol("show", "job", str(job)))["Restarts"])


def wait_for_restart(site: Site, job: int | str) -> None:
    wait_until(lambda: restarts(site, job) == 1, what=f"job {job} to be requeued")


@contextmanager
def prolog_from(site: Site, checkout: Path) -> Iterator[None]:
    """Let the nodes run another checkout's Prolog."""
    hook = site.directory / "prolog"
    text = hook.read_text()
    hook.write_text(text.replace(str(PROLOG), str(checkout / "prolog" / PROLOG.name)))
    assert hook.read_text() != text
    try:
        yield
    finally:
        hook.write_text(text)


@contextmanager
def broken_checkout(site: Site) -> Iterator[Path]:
    """Yield a copy of this checkout whose Prolog the nodes run, for a test to break."""
    checkout = site.directory / "broken"
    for name in ("hpcimg", "prolog"):
        shutil.copytree(ROOT / name, checkout / name)
    if (ROOT / ".venv").exists():
        (checkout / ".venv").symlink_to(ROOT / ".venv")
    try:
        with prolog_from(site, checkout):
            yield checkout
    finally:
        shutil.rmtree(checkout)


# A user's mistake


def test_an_array_with_a_typing_error_asks_the_server_once(site: Site) -> None:
    url = site.web.url("/misspelled.sif")
    first = submit(site, url, "--nodelist=n1", "--array=0-7%2")
    for task in range(8):
        wait_until(
            lambda task=task: "FAILED" in site.cluster.scontrol("show", "job", f"{first}_{task}"),
            what=f"task {task} to fail",
        )
        said = (site.cluster.work / f"slurm-{first}_{task}.out").read_text()
        assert f"hpcimg: there is nothing at {url}" in said
    undrained(site)
    assert site.web.count(path="/misspelled.sif") == 1


# A server that is down


def test_a_server_that_is_down_fails_the_job(site: Site) -> None:
    url = site.put("down")
    down(site, "down")
    said = failed(site, submit(site, url))
    assert "503" in said
    assert "Submit the job again later" in said
    up(site, "down")
    assert completed(site, submit(site, url)) == ["down\n"]


def test_a_job_is_requeued_until_the_server_is_back(site: Site) -> None:
    site.configure(REQUEUE.format(3))
    url = site.put("back")
    down(site, "back")
    before = site.status("n1")["counts"].get("requeue", 0)
    job = submit(site, url)
    wait_for_restart(site, job)
    up(site, "back")
    assert completed(site, job) == ["back\n"]
    undrained(site)
    log = site.node("n1").log()
    assert f"job {job}: WARNING: This job was requeued, 1 of 3 times." in log
    assert site.status("n1")["counts"]["requeue"] == before + 1


def test_after_so_many_times_it_fails(site: Site) -> None:
    site.configure(REQUEUE.format(1))
    url = site.put("away")
    down(site, "away")
    job = submit(site, url)
    said = failed(site, job)
    assert restarts(site, job) == 1
    assert "503" in said
    assert "It was requeued 1 of 1 times." in said


def test_a_job_that_may_not_be_requeued_fails(site: Site) -> None:
    site.configure(REQUEUE.format(3))
    url = site.put("once")
    down(site, "once")
    said = failed(site, submit(site, url, "--nodelist=n1", "--no-requeue"))
    assert "It was not requeued: Requested operation is presently disabled" in said
    argv = ["srun", "--nodelist=n1", f"--comment=container:{url}", "true"]
    done = site.cluster.run(argv)
    assert done.returncode == 1
    assert "It was not requeued: Only batch jobs are accepted" in done.stdout


def test_a_job_on_two_nodes_is_requeued_once(site: Site) -> None:
    site.configure(REQUEUE.format(3))
    url = site.put("both")
    down(site, "both")
    job = submit(site, url, "--nodes=2", "--nodelist=n1,n2")
    wait_for_restart(site, job)
    up(site, "both")
    assert completed(site, job) == ["both\n"]
    assert restarts(site, job) == 1
    undrained(site)


def test_one_task_of_an_array_is_requeued_alone(site: Site) -> None:
    """The last task of an array has the array's own job id."""
    site.configure(REQUEUE.format(3))
    url, gate = site.put("tasks"), Gate(site.directory / "tasks.gate")
    completed(site, submit(site, url, "--nodelist=n1"))
    down(site, "tasks")
    # A node holds one task; n1 has the image, n2 has not.
    job = submit(
        site,
        url,
        "--array=0-1",
        "--exclusive",
        "--exclude=n3",
        before=f"[ $SLURM_ARRAY_TASK_ID = 1 ] || {{ {gate.wait}\n}}",
    )
    wait_for_restart(site, f"{job}_1")
    other = job_fields(site.cluster.scontrol("show", "job", f"{job}_0"))
    assert (other["JobState"], other["Restarts"]) == ("RUNNING", "0")
    assert other["JobId"] != str(job)
    up(site, "tasks")
    gate.open()
    for task in (0, 1):
        wait_until(
            lambda task=task: "COMPLETED" in site.cluster.scontrol("show", "job", f"{job}_{task}"),
            what=f"task {task} to end",
        )


def test_a_cancelled_job_is_not_brought_back(site: Site) -> None:
    site.configure(f"[stage]\ndeadline = 2s\n{REQUEUE.format(3)}")
    url = site.put("cancelled", size_bytes=1 << 20)
    with site.web.hold("/cancelled.sif", after_bytes=1000) as hold:
        job = submit(site, url)
        hold.wait_reached()
        site.cluster.scancel(job)
        assert site.cluster.wait(job) == "CANCELLED"
    assert restarts(site, job) == 0
    assert "requeued" not in site.node("n1").log().partition(f"job {job}:")[2]


# A node at fault


@contextmanager
def faulty_cache(site: Site, how: str) -> Iterator[None]:
    """Break n1's cache for a while."""
    cache = site.node("n1").cache
    if how == "file":
        kept = cache.with_name("kept")
        if cache.exists():
            cache.rename(kept)
        cache.touch()
    else:
        cache.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(cache)], check=True)
    try:
        yield
    finally:
        if how == "file":
            cache.unlink()
            if kept.exists():
                kept.rename(cache)
        else:
            subprocess.run(["umount", str(cache)], check=True)


def test_a_faulty_cache_fails_the_job_and_the_doctor_names_it(site: Site) -> None:
    url, node = site.put("faulty"), site.node("n1")
    for how, word in ("file", "is not a directory"), ("read-only", "cannot be used"):
        with faulty_cache(site, how):
            said = failed(site, submit(site, url))
            assert f"{node.cache}" in said
            assert word in said
            assert "Tell the administrators" in said or "Move it" in said
            doctor = node.hpcimg("doctor", "--node")
            assert doctor.returncode == 1
            assert f"PROBLEM directories: {node.cache}" in doctor.stdout
        doctor = node.hpcimg("doctor", "--node")
        assert (doctor.returncode, doctor.stdout, doctor.stderr) == (0, "", "")
    assert completed(site, submit(site, url)) == ["faulty\n"]


def test_a_faulty_node_is_drained_where_the_site_says_so(site: Site) -> None:
    site.configure("[policy]\non_node_fault = drain\n")
    url = site.put("drained")
    # Not for what a user did, nor a server.
    failed(site, submit(site, site.web.url("/no-such.sif")))
    down(site, "drained")
    failed(site, submit(site, url))
    up(site, "drained")
    with faulty_cache(site, "read-only"):
        job = submit(site, url)
        wait_until(lambda: site.cluster.node_states()["n1"] == "drained", what="the drain")
    assert site.cluster.node_reasons()["n1"] == "Prolog error"
    assert "Slurm is told to drain this node" in site.node("n1").log()
    site.cluster.resume("n1")
    site.cluster.scontrol("release", str(job))
    assert completed(site, job) == ["drained\n"]


def test_a_health_check_of_slurm_drains_a_faulty_node(tmp_path: Path) -> None:
    """The script of the documentation, as HealthCheckProgram."""
    (block,) = [
        block
        for block in docblocks.blocks(ROOT / "docs" / "howto-operate.md", "sh")
        if "doctor --node" in block.text
    ]
    if missing := Site.missing():
        pytest.skip(missing)
    script = tmp_path / "health-check"
    lines = f"HealthCheckProgram={script}\nHealthCheckInterval=2"
    with Site(nodes=2, extra_conf=lines) as site:
        text = block.text.replace("/usr/lib/hpcimg", str(ROOT))
        # slurmd gives it its node's name and nothing else.
        setting = f"export HPCIMG_CONF={site.conf} SLURM_CONF={site.cluster.conf}\nPATH="
        script.write_text(text.replace("PATH=", setting, 1))
        script.chmod(0o755)
        assert completed(site, submit(site, site.put("well"))) == ["well\n"]
        with faulty_cache(site, "file"):
            wait_until(
                lambda: site.cluster.node_states()["n1"] == "drained",
                what="the health check",
            )
        reasons = site.cluster.node_reasons()
        # It may have looked just before the cache was replaced, and written to it just after.
        assert re.match(
            rf"hpcimg: PROBLEM (directories|cache): {site.node('n1').cache} (is not|cannot be)",
            reasons["n1"],
        )
        assert reasons["n2"] == "none"
        site.cluster.resume("n1")
        assert completed(site, submit(site, site.put("again"))) == ["again\n"]


def test_the_doctor_knows_the_hooks_and_the_jobs_of_slurm(site: Site) -> None:
    url, node = site.put("known"), site.node("n1")
    gate = Gate(site.directory / "known.gate")
    job = submit(site, url, before=gate.wait)
    gate.reached(site, job)
    found = node.hpcimg("doctor")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.count("ok      hooks: ") == 3
    assert "ok      leases: 1 jobs with images, Slurm knows them all" in found.stdout
    node.stage(4_000_000, f"container:{url}")
    found = node.hpcimg("doctor")
    assert found.returncode == 1
    assert "PROBLEM leases: jobs that ended still hold images: 4000000" in found.stdout
    node.epilog(4_000_000)
    gate.open()
    completed(site, job)


# A mistake of ours, and a broken installation


def test_a_bug_fails_the_job_and_leaves_a_traceback(site: Site) -> None:
    site.configure("[policy]\non_node_fault = drain\non_transient = requeue\n")
    with broken_checkout(site) as checkout:
        module = checkout / "hpcimg" / "stage.py"
        wrong = "\n\ndef stage(*_, **__):\n    raise ValueError('a mistake of ours')\n"
        module.write_text(module.read_text() + wrong)
        said = failed(site, submit(site, site.put("bug")))
    assert "hpcimg failed on this node: ValueError: a mistake of ours." in said
    assert "Tell the administrators" in said
    assert "Traceback (most recent call last)" in site.node("n1").log()


def test_a_broken_installation_drains_no_node(site: Site) -> None:
    site.configure("[policy]\non_node_fault = drain\n")
    url = site.put("broken")
    with broken_checkout(site) as checkout:
        (checkout / "hpcimg" / "locks.py").write_text("import no_such_package\n")
        assert "Prolog was interrupted" in failed(site, submit(site, url))
        (checkout / ".venv").unlink(missing_ok=True)
        (checkout / ".venv" / "bin").mkdir(parents=True)
        python = checkout / ".venv" / "bin" / "python"
        python.write_text("#!/no/such/interpreter\n")
        python.chmod(0o755)
        assert "Prolog was interrupted" in failed(site, submit(site, url))
    undrained(site)
    # Epilog could not work for that one, and what Prolog's shell made is left to gc.
    node = site.node("n1")
    wait_until(
        lambda: node.hpcimg("gc").returncode == 0 and node.jobs() == [],
        what="no job to be left",
    )


def test_a_wrong_configuration_drains_no_node(site: Site) -> None:
    site.configure("[policy]\non_node_fault = drain\n[stash]\n")
    said = failed(site, submit(site, site.put("wrong")))
    assert "unknown section [stash]" in said
