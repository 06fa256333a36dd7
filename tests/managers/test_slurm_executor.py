"""Snakemake with its Slurm executor on a real cluster: its jobs run from the cache.

In the place of Apptainer is a script that notes how it is called, and runs the command outside.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.managers.test_names import PYTHON
from tests.parts.cluster import slurm_version, write_hook
from tests.parts.daemon import PATH
from tests.parts.node import ROOT
from tests.parts.site import Site

MISSING = Site.missing() or ("" if PYTHON.exists() else "make test-managers gets Snakemake")
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)
# sbatch has --extra since then, which Snakemake passes on for each rule.
HAS_EXTRA = bool(shutil.which("sbatch")) and slurm_version() >= (23, 2)
STAND_IN = """#!/bin/sh
echo "$*" >>"$CALLS"
case $1 in
--version) echo 'apptainer version 1.3.4' ;;
exec)
    until [ -f "$1" ]; do shift; done
    shift
    exec "$@"
    ;;
*) exit 1 ;;
esac
"""
SNAKEFILE = """
import os
rule one:
    output: "out.txt"
    resources: {resources}
    container: os.environ.get("HPCIMG_IMAGE", "/not/here.sif")
    shell: "echo hello >{{output}}"
"""


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(nodes=1, lua=[ROOT / "etc/cli_filter.lua"]) as site:
        yield site


def test_each_rule_runs_from_the_cache_and_nothing_is_pulled(site: Site) -> None:
    uri = site.put("tool")
    place = site.directory / "workflow"
    place.mkdir()
    for name in ("apptainer", "singularity"):
        program = site.directory / name
        program.write_text(STAND_IN)
        program.chmod(0o755)
    # Snakemake clears away Slurm's variables; a host finds its slurm.conf without.
    srun = shutil.which("srun", path=PATH)
    write_hook(site.directory, "srun", srun or "", {"SLURM_CONF": str(site.cluster.conf)})
    calls = place / "calls"
    calls.touch()
    resources = "tasks=1"
    env = {"CALLS": str(calls), "HOME": str(place)}
    if HAS_EXTRA:
        resources += f", slurm_extra=\"--extra='container:{uri}'\""
    else:
        env["HPCIMG_CONTAINER"] = uri
    (place / "Snakefile").write_text(SNAKEFILE.format(resources=resources))
    argv = [
        str(PYTHON.parent / "snakemake"), "--directory", str(place), "--snakefile",
        str(place / "Snakefile"), "--executor", "slurm", "--jobs", "1",
        "--software-deployment-method", "apptainer", "--shared-fs-usage", "persistence",
        "input-output", "sources", "source-cache", "storage-local-copies", "--slurm-no-account",
        "--default-resources", "slurm_partition=test", "mem_mb=100", "runtime=10",
        "--slurm-init-seconds-before-status-checks", "1", "--slurm-status-command", "squeue",
        "--latency-wait", "10",
    ]  # fmt: skip
    env["PATH"] = f"{site.directory}:{PYTHON.parent}:{PATH}"
    # As root, in whose home its Python may be.
    done = site.cluster.run(argv, env=env, timeout_s=150)
    logs = [log.read_text() for log in place.glob(".snakemake/slurm_logs/*/*.log")]
    assert done.returncode == 0, "\n".join([done.stderr, *logs])
    assert (place / "out.txt").read_text() == "hello\n"
    called = [line for line in calls.read_text().splitlines() if not line.startswith("--version")]
    assert called
    assert all(line.startswith("exec ") for line in called)
    cached = Path(site.directory / "n1/cache/images")
    assert all(str(cached) in line for line in called)
    [event] = [e for e in site.node("n1").hpcimg_json("history")["events"] if "key" in e]
    assert event["event"] == "fetched"
