"""Ask workflow managers where they would look for an image, by their own code.

Run by a Python that has them: `ask.py DIRECTORY MANAGER...`, with containers on standard
input, one a line. Prints a line of JSON for each: the file that each manager takes. DIRECTORY
has one directory of images for each.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def nextflow(_directory: Path, container: str) -> str:
    """Return the name by nf-core's function, which has Nextflow's rule."""
    from nf_core.pipelines.download.singularity import SingularityFetcher

    fetcher = object.__new__(SingularityFetcher)
    fetcher.registry_set = set()
    return str(fetcher.get_container_filename(container))


def snakemake(directory: Path, container: str) -> str:
    from snakemake.deployment.singularity import Image

    persistence = SimpleNamespace(container_img_path=str(directory))
    dag: Any = SimpleNamespace(workflow=SimpleNamespace(persistence=persistence))
    image = Image(container, dag, False)
    image.pull()  # which it does not where the file is there
    return Path(image.path).name


def miniwdl(directory: Path, container: str) -> str:
    from WDL.runtime.backend.singularity import SingularityContainer

    made = object.__new__(SingularityContainer)
    made.image_cache_dir = str(directory)
    made.runtime_values = {"docker": container.removeprefix("docker://")}
    made.cfg = SimpleNamespace(
        get_list=lambda *_: ["singularity"], get_dict=lambda *_: {"docker": "none"}
    )
    path, pull = made._pull_invocation(logging.getLogger(), ExitStack())
    assert pull == [], f"it would pull {pull}"
    return Path(path).name


def cwltool(directory: Path, container: str) -> str:
    from cwltool.singularity import SingularityCommandLineJob

    os.environ["CWL_SINGULARITY_CACHE"] = str(directory)
    wanted = {"dockerPull": container}
    assert SingularityCommandLineJob.get_image(wanted, True, str(directory.parent / "tmp"))
    return Path(wanted["dockerImageId"]).name


MANAGERS = {each.__name__: each for each in (cwltool, miniwdl, nextflow, snakemake)}

if __name__ == "__main__":
    directory, *wanted = sys.argv[1:]
    for line in sys.stdin.read().splitlines():
        answers = {name: MANAGERS[name](Path(directory) / name, line) for name in wanted}
        print("ANSWER", json.dumps(answers))
