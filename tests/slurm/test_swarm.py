"""A job of several nodes on a real cluster, whose slurmds live in network namespaces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.parts.cluster import Cluster, hpcimg_hooks
from tests.parts.lab import Lab

pytest.importorskip("libtorrent", reason="not installed here: the Python package libtorrent")
pytestmark = pytest.mark.skipif(
    bool(Cluster.missing() or Lab.missing()), reason=Cluster.missing() or Lab.missing() or "-"
)
_NODES = 3
_IMAGE = 3_000_000


class Place(NamedTuple):
    """A cluster in a lab."""

    lab: Lab
    cluster: Cluster


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A cluster of three nodes, with munge as Slurm has it, that share images from two nodes on."""
    with Lab(_NODES) as lab:
        conf = lab.directory / "hpcimg.conf"
        variables = {"HPCIMG_CONF": str(conf)}
        cluster = Cluster(
            nodes=_NODES,
            hooks=hpcimg_hooks(lab.directory, variables),
            extra_conf="PrologFlags=Alloc,DeferBatch",
            lab=lab,
        )
        with cluster:
            conf.write_text(
                f"[cache]\npath = {lab.directory}/%n/cache\nmin_free = 0\n"
                f"[state]\npath = {lab.directory}/%n/state\n"
                f"[log]\nto = {lab.directory}/%n/hpcimg.log\n"
                f"[stage]\nregistries_conf = {lab.directory}/registries.conf\n"
                f"[peers]\nuse = yes\nmin_nodes = 2\nnetworks = {lab.network}\n"
                f"munge_socket = {cluster.directory}/munge/socket\n"
            )
            conf.chmod(0o644)
            yield Place(lab, cluster)


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_job_takes_one_image_from_the_origin(place: Place, nodes: int) -> None:
    lab, cluster = place
    url = lab.put(size_bytes=_IMAGE)
    before = lab.origin_sent()
    job = cluster.sbatch(
        'srun sha256sum "$HPCIMG_IMAGE"', f"--nodes={nodes}", f"--comment=container:{url}"
    )
    assert cluster.wait(job) == "COMPLETED", logs(lab)
    file = lab.directory / url.rpartition("/")[2]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    [output] = cluster.work.glob(f"slurm-{job}.out")
    assert [line.split()[0] for line in output.read_text().splitlines()] == [digest] * nodes
    assert lab.origin_sent() - before <= 1.1 * _IMAGE, logs(lab)
    assert f"{job}: WARNING" not in logs(lab)
    assert set(cluster.node_states().values()) == {"idle"}


def logs(lab: Lab) -> str:
    """Return hpcimg's log lines of all nodes."""
    return "\n".join(node.log() for node in lab.nodes)
