"""The importer where pyxis runs it: in a step's manager, before TaskProlog and the tasks.

pyxis itself is in no package registry. Its place is taken by a SPANK plugin of ours, which is built
here and runs the importer as pyxis does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.parts.daemon import PATH, missing_commands
from tests.parts.helper import Helper
from tests.parts.node import ROOT
from tests.parts.ociimages import make_layer, push_image
from tests.parts.site import Site
from tests.slurm.checks import settled, undrained

MISSING = Site.missing() or Helper.missing() or missing_commands("gcc")
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)
SOURCE = ROOT / "tests/parts/pyxis.c"


def build(directory: Path) -> Path:
    """Compile the plugin for the installed Slurm, which loads no other release's."""
    version = subprocess.run(
        ["slurmctld", "-V"], env={"PATH": PATH}, capture_output=True, text=True, check=True
    )
    release = [int(number) for number in re.findall(r"\d+", version.stdout)[:3]]
    number = release[0] << 16 | release[1] << 8 | release[2]
    plugin = directory / "stand_in.so"
    argv = ["gcc", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result", "-shared", "-fPIC"]
    subprocess.run([*argv, f"-DSLURM_RELEASE={number}", "-o", plugin, SOURCE], check=True)
    return plugin


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="plugin-", dir="/tmp"))
        stack.callback(shutil.rmtree, directory)
        for name in ("hpcimg", "bin", "prolog"):
            shutil.copytree(ROOT / name, directory / name)
        (directory / "python").symlink_to((ROOT / ".venv/bin/python").resolve())
        stack_conf = directory / "plugstack.conf"
        importer = directory / "bin/hpcimg-pyxis-importer"
        stack_conf.write_text(f"required {build(directory)} {importer}\n")
        subprocess.run(["chmod", "-R", "go+rX", directory], check=True)
        made = Site(nodes=1, extra_conf=f"PlugStackConfig={stack_conf}")
        site = stack.enter_context(made)
        site.configure("[slurm]\npyxis = yes\n[stage]\nformat = sif\n")
        env = {"HPCIMG_CONF": str(site.conf), "SLURMD_NODENAME": "n1"}
        env["SLURM_CONF"] = str(site.cluster.conf)
        stack.enter_context(Helper(site.directory / "n1/state", env))
        yield site
        settled(site)


def test_a_step_of_a_batch_script_has_its_image(site: Site) -> None:
    push_image(site.registry, "lab/x", "1", [make_layer({"hello": os.urandom(100_000)})])
    uri = f"docker://{site.registry.host}#lab/x:1"
    step = f"STAND_IN_IMAGE='{uri}' srun sh -c 'echo \"$STAND_IN_PATH\"'\n"
    job = site.cluster.sbatch(f"export HPCIMG_CONF={site.conf}\n{step}{step}")
    assert site.cluster.wait(job) == "COMPLETED", site.cluster.output(job)
    # srun may say besides that it waits for the step before.
    paths = [line for line in site.cluster.output(job).splitlines() if line.startswith("/")]
    first, second = map(Path, paths)
    assert first == second
    assert first.suffix == ".squashfs"
    assert first.exists()
    events = site.node("n1").hpcimg_json("history")["events"]
    assert [event["event"] for event in events if event.get("job") == str(job)] == ["fetched"]
    assert site.node("n1").leases() == set()


def test_why_there_is_none_is_in_the_output_of_the_step(site: Site) -> None:
    uri = f"docker://{site.registry.host}#lab/none:1"
    script = f"export HPCIMG_CONF={site.conf}\nSTAND_IN_IMAGE='{uri}' srun echo it ran"
    job = site.cluster.sbatch(script)
    site.cluster.wait(job)  # how it ends is not the same with all releases of srun
    said = site.cluster.output(job)
    assert "stand-in: hpcimg: there is nothing at docker://" in said
    assert "it ran" not in said
    undrained(site)
