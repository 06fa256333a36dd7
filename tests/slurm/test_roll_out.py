"""The roll-out of the manual, step by step, on a cluster with jobs in it: nothing is drained."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import images
from tests.parts.cluster import Cluster, write_hook
from tests.parts.daemon import wait_until
from tests.parts.docblocks import ROOT, blocks
from tests.parts.images import make_sif
from tests.parts.node import EPILOG, PROLOG, TASK_PROLOG

MISSING = Cluster.missing() or images.missing()
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)
PAGE = ROOT / "docs" / "howto-install.md"
HOOKS = {"prolog": PROLOG, "task-prolog": TASK_PROLOG, "epilog": EPILOG}


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="roll-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


class RollOut:
    """A cluster of two nodes without hpcimg, which n1 gets."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.image = make_sif(directory / "x.sif", {"hello": b"hello\n"})
        self.image.chmod(0o644)

    def install(self) -> None:
        """Put the hooks on n1, which is a directory here."""
        node = self.directory / "n1"
        node.mkdir()
        conf = node / "hpcimg.conf"
        conf.write_text(
            f"[cache]\npath = {node}/cache\nmin_free = 0\n[state]\npath = {node}/state\n"
            f"[log]\nto = {node}/hpcimg.log\n"
        )
        for path in (node, conf):
            path.chmod(0o755)
        for name, hook in HOOKS.items():
            own = Path(shutil.copy(hook, node / f"own-{name}")) if name == "task-prolog" else hook
            write_hook(node, f"hpcimg-{name}", own, {"HPCIMG_CONF": str(conf)})

    def wrap(self) -> dict[str, Path]:
        """Write the manual's wrappers, on every node."""
        texts = [block.text for block in blocks(PAGE, "sh") if "hook=" in block.text]
        texts.append(texts[0].replace("prolog", "epilog"))
        found = {}
        for name, text in zip(HOOKS, texts, strict=True):
            place = f"/usr/lib/hpcimg/{'epilog' if name == 'epilog' else 'prolog'}"
            assert f"hook={place}/hpcimg-{name}\n" in text
            found[name] = self.directory / f"wrapper-{name}"
            found[name].write_text(text.replace(place, f"{self.directory}/$SLURMD_NODENAME"))
            found[name].chmod(0o755)
        return found

    def settings(self, *lines: str) -> None:
        """Replace lines of slurm.conf by name, and reconfigure."""
        names = tuple(line.partition("=")[0] + "=" for line in lines)
        before = self.cluster.conf.read_text().splitlines(keepends=True)
        kept = [line for line in before if not line.startswith(names)]
        new = [f"{line}\n" for line in lines if not line.endswith("=")]
        self.cluster.conf.write_text("".join([*new, *kept]))
        self.cluster.scontrol("reconfigure")
        wait_until(
            lambda: all("idle" in s or "mixed" in s for s in self.cluster.node_states().values()),
            what="the nodes after the reconfiguration",
        )

    def run(self, node: str) -> str:
        """Run a job that names the image; return what it finds."""
        job = self.cluster.sbatch(
            'echo "image: $HPCIMG_IMAGE"',
            f"--nodelist={node}",
            f"--comment=container:{self.image}",
        )
        assert self.cluster.wait(job) == "COMPLETED", self.cluster.output(job)
        return self.cluster.output(job).removeprefix("image: ").strip()


def test_no_node_is_drained_and_no_job_is_lost(directory: Path) -> None:
    with Cluster(nodes=2, extra_conf="PrologFlags=") as cluster:
        rolled = RollOut(directory, cluster)
        gate = directory / "gate"
        os.mkfifo(gate)
        gate.chmod(0o644)
        running = cluster.sbatch(f"read -r _ <{gate}; srun echo here", "--nodelist=n1")
        cluster.wait(running, until={"RUNNING"})
        rolled.install()
        wrapper = rolled.wrap()
        rolled.settings(
            f"TaskProlog={wrapper['task-prolog']}", "BatchStartTimeout=600",
            "PrologEpilogTimeout=600",
        )  # fmt: skip
        assert rolled.run("n1") == rolled.run("n2") == ""
        rolled.settings(
            f"Prolog={wrapper['prolog']}", f"Epilog={wrapper['epilog']}", "PrologFlags=Alloc"
        )
        image = rolled.run("n1")
        assert Path(image).parent == directory / "n1/cache/images"
        assert rolled.run("n2") == ""
        gate.write_text("\n")
        assert cluster.wait(running) == "COMPLETED"
        assert cluster.output(running) == "here\n"
        assert os.listdir(directory / "n1/state/jobs") == []
        # And back.
        rolled.settings("Prolog=", "Epilog=", "TaskProlog=")
        assert rolled.run("n1") == ""
        assert Path(image).exists()
        assert set(cluster.node_reasons().values()) == {"none"}
