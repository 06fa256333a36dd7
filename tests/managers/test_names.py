"""Workflow managers find what a job's links name, and pull nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from hpcimg.managers import MANAGERS, names
from tests.managers import ask
from tests.parts.node import ROOT

PYTHON = ROOT / ".managers/bin/python"
CONTAINERS = [
    "docker://ubuntu:22.04",
    "docker://quay.io/biocontainers/samtools:1.19--h50ea8bc_0",
    "docker://registry.example.org:5000/lab/my_tool:v1.0_2",
    "docker://registry.example.org/lab/x",
    "docker://registry.example.org/lab/tool.sif:1.0",
    "docker://registry.example.org/lab/x@sha256:" + 64 * "0",
]
OTHERS = [
    "oras://registry.example.org/lab/x:1",
    "https://images.example.org/samtools.sif",
    "https://depot.example.org/singularity/samtools:1.19--h50ea8bc_0",
    "library://lab/tools/samtools:1.19",
]
# Of Apptainer, which nobody is to ask for anything but its release.
STAND_IN = """#!/bin/sh
case $1 in
--version) echo 'singularity-ce version 4.1.0' ;;
*) echo "$*" >>"$PULLED"; exit 1 ;;
esac
"""


def asked(directory: Path, containers: list[str], managers: list[str]) -> list[dict[str, str]]:
    """Return the names by which the managers find images that are linked under ours."""
    stand_in = directory / "bin/singularity"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (directory / "image").write_text("")
    for manager in managers:
        (directory / manager).mkdir()
        for name in names(manager, containers):
            (directory / manager / name).symlink_to(directory / "image")
        (directory / manager).chmod(0o555)
    done = subprocess.run(
        [PYTHON, ask.__file__, directory, *managers],
        input="\n".join(containers),
        env={
            "PATH": f"{stand_in.parent}:{os.environ['PATH']}",
            "PULLED": str(directory / "pulled"),
            "HOME": str(directory),
        },
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (directory / "pulled").exists()
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    return [json.loads(line.partition(" ")[2]) for line in lines]


@pytest.mark.skipif(not PYTHON.exists(), reason="make test-managers gets workflow managers")
@pytest.mark.parametrize(
    ("containers", "managers"),
    [(CONTAINERS, list(MANAGERS)), (OTHERS, ["nextflow", "snakemake"])],
    ids=["docker", "others"],
)
def test_the_managers_find_our_names(
    tmp_path: Path, containers: list[str], managers: list[str]
) -> None:
    found = asked(tmp_path, containers, managers)
    for container, answers in zip(containers, found, strict=True):
        wanted = {manager: names(manager, [container]) for manager in managers}
        assert {manager: [name] for manager, name in answers.items()} == wanted
