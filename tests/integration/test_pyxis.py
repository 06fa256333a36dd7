"""What Prolog stages for pyxis, and the importer that hands it over.

pyxis and enroot are in no package registry. What they do is played here: Slurm's variable for
Prolog; then `importer get`, as the job's user with standard input closed and without PATH, and
`importer release` twice, the last time without SLURMD_NODENAME. `slurm/test_importer.py` has it
run where pyxis does, by a plugin of Slurm's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg.slurm import pyxis
from tests.integration.checks import let_pass
from tests.parts import images
from tests.parts.images import read_from_image
from tests.parts.node import ROOT, Node
from tests.parts.ociimages import make_layer, push_image
from tests.parts.registry import Registry

MISSING = Registry.missing() or images.missing()
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)

IMPORTER = ROOT / "bin/hpcimg-pyxis-importer"
ENROOT = """#!/bin/sh
[ "$1 $2" = "import --output" ] || exit 9
echo "$4" >"$3"
"""


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        push_image(registry, "lab/x", "1", [make_layer({"hello": os.urandom(100_000)})])
        yield registry


class PyxisNode(Node):
    """A node where Slurm passes `--container-image` to Prolog."""

    def __init__(self, directory: Path, registry: Registry) -> None:
        super().__init__(directory)
        self.image = ""
        self.registry = registry
        self.wanted()

    def wanted(self, more: str = "[slurm]\npyxis = yes\n") -> None:
        self.configure(
            f"[registry {self.registry.host}]\ninsecure = yes\n[stage]\nformat = sif\n{more}"
        )

    def environment(self, job: int | str, comment: str | None = None) -> dict[str, str]:
        fields = super().environment(job, comment)
        return {**fields, pyxis.VARIABLE: self.image} if self.image else fields

    def importer(self, job: int, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        fields = {"HPCIMG_CONF": str(self.conf), "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": "0"}
        return subprocess.run(
            [IMPORTER, *arguments],
            env={**fields, "TMPDIR": str(self.directory), **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def get(self, job: int, uri: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.importer(job, "get", uri, SLURMD_NODENAME="n1", **more)


@pytest.fixture
def node(tmp_path: Path, registry: Registry) -> PyxisNode:
    return PyxisNode(tmp_path, registry)


def test_what_container_image_names_is_staged_as_squashfs(
    node: PyxisNode, registry: Registry
) -> None:
    node.image = f"{registry.host}#lab/x:1"
    task = node.stage(1, None)
    assert (task.code, task.exports, task.printed) == (0, {}, "")
    done = node.get(1, f"docker://{node.image}")
    path = Path(done.stdout.rstrip("\n"))
    assert (done.returncode, done.stderr, path.suffix) == (0, "", ".squashfs")
    assert len(read_from_image(path, "hello")) == 100_000
    assert node.leases() == {(path.stem, "1")}
    assert node.importer(1, "release", SLURMD_NODENAME="n1").returncode == 0
    assert node.importer(1, "release").returncode == 0
    assert path.exists()
    asked = len(registry.requests())
    task = node.stage(2, None)
    assert node.get(2, f"docker://{node.image}").stdout == f"{path}\n"
    assert node.record(2)["images"][0]["source"] == "hit"
    assert len(registry.requests()) == asked
    node.epilog(1)
    node.epilog(2)
    assert node.leases() == set()


def test_what_the_submit_filter_found_in_the_environment_is_staged_as_well(
    node: PyxisNode, registry: Registry
) -> None:
    uri = f"docker://{registry.host}/lab/x:1"
    comment = f"container:PYXIS_CONTAINER_IMAGE={uri} container:a={uri}"
    task = node.stage(1, comment)
    assert set(task.exports) == {"HPCIMG_IMAGE", "HPCIMG_IMAGE_a", "HPCIMG_IMAGES"}
    assert task.image.suffix == ".sif"
    path = node.get(1, uri).stdout
    assert Path(path.strip()).suffix == ".squashfs"
    node.image = f"{registry.host}#lab/x:1"
    node.stage(2, comment)
    assert node.get(2, f"docker://{node.image}").stdout == node.get(2, uri).stdout == path
    node.image = ""
    node.wanted("")
    assert node.stage(3, f"container:PYXIS_CONTAINER_IMAGE={uri}").exports == {}
    assert not (node.state / "jobs/3").exists()


def test_one_image_in_two_formats_moves_its_layers_once(
    node: PyxisNode, registry: Registry
) -> None:
    before = len(registry.blob_gets())
    comment = f"container:docker://{registry.host}/lab/x:1"
    sif = node.stage(1, comment).image
    node.image = f"{registry.host}#lab/x:1"
    task = node.stage(2, comment)
    squashfs = Path(node.get(2, f"docker://{node.image}").stdout.rstrip("\n"))
    assert (task.image, sif.suffix, squashfs.suffix) == (sif, ".sif", ".squashfs")
    layers = [get for get in registry.blob_gets()[before:] if get.sent_bytes > 50_000]
    assert len(layers) == 1
    assert {path.suffix for path in node.images()} == {".sif", ".squashfs"}
    # Neither makes the other one asked for again.
    asked = len(registry.requests())
    node.stage(3, comment)
    assert {image["source"] for image in node.record(3)["images"]} == {"hit"}
    for hot in node.state.glob("hot/*/*"):
        hot.unlink()
    node.stage(4, comment)
    assert {image["source"] for image in node.record(4)["images"]} == {"hit"}
    assert len(registry.requests()) == asked
    let_pass(node, 7200)
    node.stage(5, comment)
    assert {image["source"] for image in node.record(5)["images"]} == {"unchanged"}


def test_why_there_is_none_is_said_by_the_importer(node: PyxisNode, registry: Registry) -> None:
    node.image = f"{registry.host}#lab/none:1"
    task = node.stage(1, None)
    done = node.get(1, f"docker://{node.image}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{task.printed}\n"
    assert "hpcimg: there is nothing at docker://" in done.stderr


def test_a_sif_file_is_nothing_for_enroot(
    node: PyxisNode, registry: Registry, tmp_path: Path
) -> None:
    sif = images.make_sif(tmp_path / "x.sif", {"hello": b"world"})
    registry.push_sif(sif, "lab/sif", "1")
    node.image = f"{registry.host}#lab/sif:1"
    for job in (1, 2):
        task = node.stage(job, None)
        assert task.code == 1
        assert "lab/sif:1 is not a squashfs file: it is a sif file" in task.printed
    node.image = ""
    assert node.stage(3, f"container:oras://{registry.host}/lab/sif:1").code == 0


@pytest.mark.parametrize("image", ["/shared/x.sqsh", "./x.sqsh", "dockerd://x"])
def test_what_enroot_opens_by_itself_is_not_ours(node: PyxisNode, image: str) -> None:
    node.image = image
    node.prolog(1, None)
    assert not (node.state / "jobs/1").exists()


def test_it_is_off_where_the_site_does_not_say_so(node: PyxisNode, registry: Registry) -> None:
    node.wanted("")
    node.image = f"{registry.host}#lab/x:1"
    node.prolog(1, None)
    assert not node.state.exists() or not (node.state / "jobs/1").exists()


def test_what_prolog_did_not_see_is_imported_by_enroot(node: PyxisNode) -> None:
    programs = node.directory / "bin"
    programs.mkdir()
    (programs / "enroot").write_text(ENROOT)
    (programs / "enroot").chmod(0o755)
    path = f"{programs}:/usr/bin:/bin"
    done = node.get(7, "docker://ubuntu:22.04", PATH=path)
    file = Path(done.stdout.rstrip("\n"))
    assert (done.returncode, file.read_text()) == (0, "docker://ubuntu:22.04\n")
    assert file.parent.stat().st_mode & 0o777 == 0o700
    for _ in range(2):
        assert node.importer(7, "release").returncode == 0
        assert not file.exists()
    (programs / "enroot").write_text("#!/bin/sh\necho enroot is unwell >&2\nexit 3\n")
    done = node.get(7, "docker://ubuntu:22.04", PATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "enroot is unwell\n")
