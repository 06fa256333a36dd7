"""Under which name a workflow manager looks for an image that it need not pull. Pure.

Each derives a file's name from the container as the workflow names it, in a directory that
an option or a variable of its own names. Where the file is there, none of them pulls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

_NAME_MAX = 255  # bytes, of any Linux file system
_HUB = "docker.io/"
_OFFICIAL = "docker.io/library/"


class Manager(NamedTuple):
    """How one names an image, and the variables that hold the directory of its images.

    `name_of` takes a container as it is written. Never APPTAINER_CACHEDIR among the
    variables: it is Apptainer's own cache as well.
    """

    name_of: Callable[[str], str]
    variables: tuple[str, ...] = ()


def names(manager: str, texts: Iterable[str]) -> list[str]:
    """Return the file names under which an image is looked for that is written in these ways."""
    addresses = [text for text in texts if not text.startswith(("/", "file:"))]  # used as they are
    found = (MANAGERS[manager].name_of(each) for text in addresses for each in _spellings(text))
    return [
        name
        for name in dict.fromkeys(found)
        if "/" not in name and name not in ("", ".", "..") and len(name.encode()) <= _NAME_MAX
    ]


def _spellings(text: str) -> Iterable[str]:
    """Yield a container as it was written, and as Docker Hub's are written as a rule."""
    yield text
    scheme, slashes, rest = text.partition("://")
    for host in (_OFFICIAL, _HUB):
        if slashes and rest.startswith(host):
            yield f"{scheme}://{rest.removeprefix(host)}"


def _snakemake(text: str) -> str:
    import hashlib

    return f"{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}.simg"


def _nextflow(text: str) -> str:
    name, ending = _without_scheme(text), ".img"
    if ".sif:" in name:
        name, ending = name.replace(".sif:", "-"), ".sif"
    elif name.endswith(".sif"):
        name, ending = name.removesuffix(".sif"), ".sif"
    return name.replace(":", "-").replace("/", "-") + ending


def _cwltool(text: str) -> str:
    name = _without_scheme(text)
    if ":" not in name:
        name += ":latest"
    return name.replace("_", "___").replace("/", "_s_") + ".sif"


def _miniwdl(text: str) -> str:
    text = f"docker://{_without_scheme(text)}"
    return text.replace(":", "_").replace("/", "_") + ".sif"


def _without_scheme(text: str) -> str:
    return text.partition("://")[2] or text


MANAGERS = {
    "cwltool": Manager(_cwltool, ("CWL_SINGULARITY_CACHE",)),
    "miniwdl": Manager(_miniwdl, ("MINIWDL__SINGULARITY__IMAGE_CACHE",)),
    "nextflow": Manager(_nextflow, ("NXF_APPTAINER_LIBRARYDIR", "NXF_SINGULARITY_LIBRARYDIR")),
    "snakemake": Manager(_snakemake),  # its directory is an option: --apptainer-prefix
}
