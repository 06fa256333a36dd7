"""Jobs of ordinary users that run their images with a real Apptainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcimg import programs
from tests.parts import apptainer, ociimages, oldsquashfs
from tests.parts.images import make_sif, make_squashfs
from tests.parts.layers import converted
from tests.parts.ociimages import make_layer, push_image, push_index
from tests.parts.site import Site
from tests.slurm.checks import completed

pytestmark = pytest.mark.skipif(apptainer.missing() != "", reason=apptainer.missing())


def run(site: Site, reference: str, command: str) -> str:
    """Return the output of a job that runs a command in its image."""
    # Silent but for errors: how Apptainer gets at the files is not of interest.
    script = f'apptainer --silent exec "$HPCIMG_IMAGE" {command}'
    [output] = completed(site, site.cluster.sbatch(script, f"--comment=container:{reference}"))
    return output


def runnable(says: str) -> dict[str, bytes]:
    """Return the files of an image in which `cat /hello` prints something."""
    return {"bin/cat": ociimages.program(), "hello": f"{says}\n".encode()}


def test_an_oras_image_runs(site: Site) -> None:
    image = make_sif(site.directory / "runs.sif", runnable("from a SIF"))
    site.registry.push_sif(image, "lab/runs", "1.0")
    assert run(site, f"oras://{site.registry.host}/lab/runs:1.0", "cat /hello") == "from a SIF\n"


def test_a_squashfs_image_runs(site: Site) -> None:
    image = make_squashfs(site.directory / "runs.squashfs", runnable("from squashfs"))
    url = site.web.put("/runs", image.read_bytes())
    assert run(site, url, "cat /hello") == "from squashfs\n"


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_a_docker_image_runs(site: Site, compression: str) -> None:
    name = compression or "plain"
    lower = {**runnable("from below"), "etc/gone": b""}
    upper = {"hello": f"from {name} layers\n".encode(), "etc/.wh.gone": b""}
    layers = [make_layer(files, compression=compression) for files in (lower, upper)]
    push_image(site.registry, f"lab/{name}", "1.0", layers)
    reference = f"docker://{site.registry.host}/lab/{name}:1.0"
    assert run(site, reference, "cat /hello") == f"from {name} layers\n"
    assert run(site, reference, "cat /etc/gone 2>/dev/null || echo no file") == "no file\n"


@pytest.mark.skipif(bool(oldsquashfs.missing()), reason=oldsquashfs.missing() or "-")
@pytest.mark.parametrize("version", ["4.4", "4.3"])
@pytest.mark.parametrize("format", ["sif", "squashfs"])
def test_what_an_old_mksquashfs_made_of_layers_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, format: str
) -> None:
    tool = oldsquashfs.put(tmp_path, version)
    monkeypatch.setattr(programs, "PATH", f"{tool.parent}:{programs.PATH}")
    data = make_layer(runnable("from an old tool")).data
    image = converted(tmp_path / "image", [data], format=format)
    url = site.web.put(f"/{version}-{format}", image.read_bytes())
    assert run(site, url, "cat /hello") == "from an old tool\n"


def test_a_docker_image_of_an_index_has_its_environment(site: Site) -> None:
    """The image for this processor, not the first of the index."""
    layer = make_layer({"bin/sh": ociimages.program()})
    images = [
        push_image(
            site.registry,
            "lab/many",
            f"for-{name}",
            [layer],
            architecture=architecture,
            settings={"Env": ["PATH=/bin", f"BUILT_FOR={name}"]},
        )
        for name, architecture in (("another", "s390x"), ("this", ""))
    ]
    push_index(site.registry, "lab/many", "1.0", images)
    reference = f"docker://{site.registry.host}/lab/many:1.0"
    assert run(site, reference, "sh -c 'echo $BUILT_FOR'") == "this\n"
