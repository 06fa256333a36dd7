"""The batch scripts of the documentation, submitted as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.parts import docblocks
from tests.parts.daemon import PATH
from tests.parts.docblocks import EXAMPLE_REGISTRY, EXAMPLE_WEB, PAGES, Block
from tests.parts.images import make_sif
from tests.parts.ociimages import make_layer, push_image
from tests.parts.site import Site

# Programs that the scripts call within the images, and what their images hold.
PROGRAMS = {"samtools": "samtools 1.19", "bwa": "0.7.17-r1188"}
# Stands in for the real one, which would need to mount: it reads the program out of the image,
# which fails if that is not whole, and runs it.
APPTAINER = """\
#!/bin/sh
set -eu
[ "$1" = exec ]
image=$2 name=$3
shift 3
program=$(READ_IMAGE "$image" "bin/$name")
exec sh -c "$program" "$name" "$@"
"""
BLOCKS = [
    pytest.param(block, id=f"{block.page.stem}-{block.line}")
    for page in PAGES
    for block in docblocks.blocks(page, "slurm")
]


@pytest.fixture
def documented(site: Site) -> Site:
    """Put the images of the documentation where it says, and apptainer beside the jobs."""
    for name, says in PROGRAMS.items():
        program = {f"bin/{name}": f"echo '{says}'\n".encode()}
        image = make_sif(site.directory / f"{name}.sif", program, size_bytes=1 << 20)
        site.web.put(f"/{name}.sif", image.read_bytes())
        push_image(site.registry, f"bio/{name}", "1.19", [make_layer(program)])
    tools = site.directory / "tools"
    tools.mkdir(exist_ok=True)
    tools.chmod(0o755)
    apptainer = tools / "apptainer"
    apptainer.write_text(APPTAINER.replace("READ_IMAGE", str(site.read_image)))
    apptainer.chmod(0o755)
    return site


@pytest.mark.parametrize("block", BLOCKS)
def test_a_script_of_the_documentation_runs(documented: Site, block: Block) -> None:
    cluster = documented.cluster
    script = block.text.replace(EXAMPLE_WEB, documented.web.url())
    script = script.replace(EXAMPLE_REGISTRY, documented.registry.host)
    assert script != block.text
    job = cluster.sbatch(script, env={"PATH": f"{documented.directory}/tools:{PATH}"})
    state = cluster.wait(job)
    output = Path(cluster.job(job)["StdOut"]).read_text()
    assert state == "COMPLETED", output
    called = re.findall(r"^apptainer exec \S+ (\w+)", script, re.MULTILINE)
    assert called
    assert [line for line in output.splitlines() if line in PROGRAMS.values()] == [
        PROGRAMS[name] for name in called
    ]
