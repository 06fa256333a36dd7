"""Jobs that request images while they run, on a real cluster, identified by its slurmd."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.parts.daemon import wait_until
from tests.parts.docblocks import EXAMPLE_REGISTRY, ROOT, blocks
from tests.parts.helper import Helper
from tests.parts.ociimages import make_layer, push_image
from tests.parts.site import Site
from tests.slurm.checks import Gate, completed, settled, undrained

pytestmark = pytest.mark.skipif(Helper.missing() != "", reason=Helper.missing() or "-")
USER, OTHER = "games", "mail"
PAGE = ROOT / "docs" / "howto-running-jobs.md"


@pytest.fixture(scope="module")
def installed(running_site: Site) -> Path:
    """The programs, in a directory that users can reach."""
    tree = running_site.directory / "hpcimg"
    for name in ("hpcimg", "bin", "prolog"):
        shutil.copytree(ROOT / name, tree / name)
    (tree / "python").symlink_to((ROOT / ".venv/bin/python").resolve())
    return tree


@pytest.fixture
def node(running_site: Site, installed: Path) -> Iterator[Site]:
    """A site whose first nodes have a helper."""
    running_site.configure("[slurm]\npyxis = yes\n[stage]\nformat = sif\n")
    with ExitStack() as stack:
        for name in ("n1", "n2"):
            env = {"HPCIMG_CONF": str(running_site.conf), "SLURMD_NODENAME": name}
            env["SLURM_CONF"] = str(running_site.cluster.conf)
            stack.enter_context(Helper(running_site.directory / name / "state", env))
        yield running_site
        settled(running_site)


def variables(site: Site, installed: Path) -> str:
    """Return the lines of a job that finds the programs, and the site's configuration."""
    return f"export HPCIMG_CONF={site.conf} PATH={installed}/bin:$PATH\n"


def test_a_job_finds_out_what_it_needs(node: Site, installed: Path) -> None:
    """As the manual writes it, with what it says apptainer is told."""
    push_image(node.registry, "bio/samtools", "1.19", [make_layer({"hello": b"hello\n"})])
    (block,) = [block for block in blocks(PAGE, "sh") if "hpcimg stage" in block.text]
    script = block.text.replace(EXAMPLE_REGISTRY, node.registry.host)
    assert script.splitlines()[1].startswith('apptainer exec "$image" ')
    script = script.splitlines()[0] + f'\n{node.read_image} "$image" hello\n'
    gate = Gate(node.directory / "gate")
    job = node.cluster.sbatch(
        variables(node, installed) + script + gate.wait, "--nodelist=n1", user=USER
    )
    gate.reached(node, job)
    assert "hello\n" in node.cluster.output(job)
    assert node.node("n1").leases() != set()
    assert node.node("n1").record(job)["state"] == "ready"
    gate.open()
    completed(node, job)
    assert node.node("n1").leases() == set()
    undrained(node)


def test_each_node_of_a_job(node: Site, installed: Path) -> None:
    uri = node.put("each")
    script = f"srun --ntasks-per-node=1 hpcimg stage {uri}"
    job = node.cluster.sbatch(
        variables(node, installed) + script, "--nodes=2", "--nodelist=n1,n2", user=USER
    )
    [said] = completed(node, job)
    assert said.count(f"{uri}: fetched") == 2


def test_what_it_cannot_have_is_said_in_its_output(node: Site, installed: Path) -> None:
    uri = node.web.url("/none.sif")
    job = node.cluster.sbatch(
        variables(node, installed) + f"hpcimg stage {uri} || exit", "--nodelist=n1", user=USER
    )
    assert node.cluster.wait(job) == "FAILED"
    assert node.cluster.job(job)["ExitCode"] == "12:0"
    assert "hpcimg: there is nothing at" in node.cluster.output(job)


def test_the_importer_in_a_step_of_a_batch_script(node: Site, installed: Path) -> None:
    """As pyxis calls it: without PATH, with nothing on standard input, `release` twice."""
    push_image(node.registry, "lab/step", "1", [make_layer({"hello": b"hello\n"})])
    uri = f"docker://{node.registry.host}#lab/step:1"
    importer = f"env --unset=PATH {installed}/bin/hpcimg-pyxis-importer"
    step = f"{importer} get {uri} </dev/null && {importer} release && {importer} release"
    script = f"srun sh -c '{step}'\nsrun sh -c '{step}'\n"
    job = node.cluster.sbatch(variables(node, installed) + script, "--nodelist=n1", user=USER)
    # srun may say besides that it waits for the step before.
    said = [line for line in completed(node, job)[0].splitlines() if line.startswith("/")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].endswith(".squashfs")
    events = node.node("n1").hpcimg_json("history")["events"]
    assert [event["event"] for event in events if event.get("job") == str(job)] == ["fetched"]


def test_nobody_outside_of_a_job(node: Site, installed: Path) -> None:
    gate = Gate(node.directory / "gate2")
    job = node.cluster.sbatch(gate.wait, "--nodelist=n1", user=OTHER)
    gate.reached(node, job)
    env = {"HPCIMG_CONF": str(node.conf), "SLURMD_NODENAME": "n1", "SLURM_JOB_ID": str(job)}
    argv = [f"{installed}/bin/hpcimg", "stage", node.put("mine")]
    done = node.cluster.run(argv, user=USER, env=env)
    assert done.returncode == 11
    assert "only a process of a job on this node" in done.stderr
    gate.open()
    completed(node, job)


def test_a_process_that_outlives_its_job(node: Site, installed: Path) -> None:
    """Its job ends while its request is served: no lease is left."""
    uri = node.put("late", size_bytes=2_000_000)
    with node.web.hold("/late.sif", after_bytes=1000) as hold:
        job = node.cluster.sbatch(
            variables(node, installed) + f"hpcimg stage {uri}", "--nodelist=n1", user=USER
        )
        hold.wait_reached()
        node.cluster.scancel(job)
        node.cluster.wait(job)
    over = f"job {job} has ended on this node"
    wait_until(lambda: over in node.node("n1").log(), what="the helper")
    assert node.node("n1").leases() == set()
    assert node.node("n1").jobs() == []
    undrained(node)
