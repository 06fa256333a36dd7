"""Jobs that prefer the node that has had their image, on a real cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.cluster import Cluster
from tests.parts.daemon import PATH
from tests.parts.node import ROOT
from tests.slurm.test_submit_filters import ETC, HAS_LUA

pytestmark = pytest.mark.skipif(
    bool(Cluster.missing()) or not HAS_LUA,
    reason=Cluster.missing() or "Slurm's Lua plugins are missing (slurm-wlm-basic-plugins)",
)

COMMENT = "--comment=container:docker://registry.example.org/lab/x:1"
SCHEDULER = "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,ignore_prefer_validation"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    text = (ETC / "job_submit.lua").read_text()
    assert "local PREFER = false" in text
    submit = tmp_path_factory.mktemp("locality") / "job_submit.lua"
    submit.write_text(text.replace("local PREFER = false", "local PREFER = true"))
    with Cluster(nodes=2, lua=[submit], extra_conf=f"SchedulerParameters={SCHEDULER}") as cluster:
        shutil.copy(ETC / "hpcimg.lua", cluster.directory)
        (cluster.directory / "hpcimg.lua").chmod(0o644)
        yield cluster


def features(cluster: Cluster, directory: Path, *options: str) -> list[dict[str, list[str]]]:
    """Run `hpcimg features`; return the features that it set."""
    conf = directory / "hpcimg.conf"
    conf.write_text(f"[cache]\npath = {directory}/cache\n[state]\npath = {directory}/state\n")
    done = subprocess.run(
        [str(ROOT / "bin" / "hpcimg"), "features", "--json", *options],
        env={"PATH": PATH, "HPCIMG_CONF": str(conf), "SLURM_CONF": str(cluster.conf)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, list[str]]] = json.loads(done.stdout)["updates"]
    return found


def where(cluster: Cluster, job: int) -> str:
    """Return the node where a job has run, without a delay."""
    assert cluster.wait(job) == "COMPLETED"
    return cluster.job(job)["NodeList"]


def test_a_job_goes_where_its_image_has_been(cluster: Cluster, tmp_path: Path) -> None:
    cluster.scontrol("update", "NodeName=n2", "AvailableFeatures=gpu,ib", "ActiveFeatures=ib")
    # Before anything is known of it, on the first node.
    assert where(cluster, cluster.sbatch("true", COMMENT)) == "n1"
    go = cluster.work / "go"
    busy = f"until [ -e {go} ]; do sleep 0.1; done"
    first = cluster.sbatch(busy, COMMENT, "--nodelist=n2")
    cluster.wait(first, until={"RUNNING"})
    [update] = features(cluster, tmp_path)
    assert update["nodes"] == ["n2"]
    assert update["active"][:-1] == ["ib"]
    assert update["available"][:-1] == ["gpu", "ib"]
    assert features(cluster, tmp_path) == []
    assert where(cluster, cluster.sbatch("true", COMMENT)) == "n2"
    # Full there: it does not wait.
    full = cluster.sbatch(busy, "--nodelist=n2", "--ntasks=3")
    cluster.wait(full, until={"RUNNING"})
    assert where(cluster, cluster.sbatch("true", COMMENT)) == "n1"
    go.touch()
    for job in (first, full):
        cluster.wait(job)
    # A job with a constraint of its own keeps to it.
    cluster.scontrol("update", "NodeName=n1", "AvailableFeatures=cpu", "ActiveFeatures=cpu")
    assert where(cluster, cluster.sbatch("true", COMMENT, "--constraint=cpu")) == "n1"
    assert where(cluster, cluster.sbatch("true", COMMENT, "--prefer=cpu")) == "n1"
    assert where(cluster, cluster.sbatch("true", COMMENT)) == "n2"
    assert where(cluster, cluster.sbatch("true")) == "n1"
    [update] = features(cluster, tmp_path, "--clear")
    assert (update["nodes"], update["active"], update["available"]) == (
        ["n2"], ["ib"], ["gpu", "ib"],
    )  # fmt: skip
    assert where(cluster, cluster.sbatch("true", COMMENT)) == "n1"
    assert os.path.exists(tmp_path / "state" / "features.json")
