"""Real workflows, run by their managers: they take the image that is linked, and pull nothing.

In the place of Apptainer is a script that notes how it is called, and runs nothing in images.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpcimg.managers import MANAGERS, names
from tests.managers.test_names import PYTHON

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="make test-managers gets workflow managers"
)

IMAGE = "registry.example.org/lab/x:1"
STAND_IN = """#!/bin/sh
echo "$*" >>"$CALLS"
case $1 in
--version) echo 'apptainer version 1.3.4' ;;
pull) exit 1 ;;
esac
"""
SNAKEFILE = f"""
rule one:
    output: "out.txt"
    container: "docker://{IMAGE}"
    shell: "echo hello >{{output}}"
"""
CWL = f"""
cwlVersion: v1.2
class: CommandLineTool
baseCommand: ["true"]
requirements:
  DockerRequirement: {{dockerPull: "{IMAGE}"}}
inputs: []
outputs: []
"""
WDL = f"""
version 1.0
task t {{
  command <<< true >>>
  runtime {{ docker: "{IMAGE}" }}
}}
"""
RUNS = {
    "snakemake": (
        "Snakefile",
        SNAKEFILE,
        "snakemake -c1 --software-deployment-method apptainer --apptainer-prefix $LINKS/snakemake",
    ),
    "cwltool": ("t.cwl", CWL, "CWL_SINGULARITY_CACHE=$LINKS/cwltool cwltool --singularity t.cwl"),
    "toil": (
        "t.cwl",
        CWL,
        "CWL_SINGULARITY_CACHE=$LINKS/cwltool toil-cwl-runner --singularity t.cwl",
    ),
    "miniwdl": (
        "t.wdl",
        WDL,
        "MINIWDL__SCHEDULER__CONTAINER_BACKEND=singularity "
        "MINIWDL__SINGULARITY__IMAGE_CACHE=$LINKS/miniwdl miniwdl run t.wdl --task t",
    ),
}


# As what it looks for images: toil runs cwltool's code.
LOOKS_AS = {"toil": "cwltool"}


@pytest.mark.parametrize("runs", RUNS)
def test_a_workflow_takes_the_image_that_is_linked(runs: str, tmp_path: Path) -> None:
    manager = LOOKS_AS.get(runs, runs)
    programs, links = tmp_path / "bin", tmp_path / "links" / manager
    programs.mkdir()
    links.mkdir(parents=True)
    for name in ("apptainer", "singularity"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    (tmp_path / "image").write_text("")
    [linked] = names(manager, [f"docker://{IMAGE}"])
    (links / linked).symlink_to(tmp_path / "image")
    links.chmod(0o555)
    name, text, command = RUNS[runs]
    (tmp_path / name).write_text(text)
    for variable in MANAGERS[manager].variables:
        assert f"{variable}=" in command
    environment = {
        "PATH": f"{programs}:{PYTHON.parent}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "LINKS": str(links.parent),
        "HOME": str(tmp_path),
    }
    # Whether the task itself is content with an image in which nothing ran does not matter.
    subprocess.run(
        ["sh", "-c", command], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if call.startswith("pull")] == []
    assert [call for call in calls if str(links / linked) in call] != []
