"""The file names under which workflow managers look for an image before they pull it. Pure.

Each derives a file name from the container as the workflow names it, in a directory set by an
option or a variable of its own. If the file exists, none of them pulls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

_NAME_MAX = 255  # bytes, on any Linux file system
_HUB = "docker.io/"
_OFFICIAL = "docker.io/library/"


class Manager(NamedTuple):
    """How a manager names an image, and the variables that set its image directory.

    `name_of` takes a container as it is written. APPTAINER_CACHEDIR must not be among the
    variables: Apptainer uses it for its own cache as well.
    """

    name_of: Callable[[str], str]
    variables: tuple[str, ...] = ()


def names(manager: str, texts: Iterable[str]) -> list[str]:
    """Return the file names under which an image written in these ways is looked for."""
    addresses = [text for text in texts if not text.startswith(("/", "file:"))]  # used as they are
    found = (MANAGERS[manager].name_of(each) for text in addresses for each in _spellings(text))
    return [
        name
        for name in dict.fromkeys(found)
        if "/" not in name and name not in ("", ".", "..") and len(name.encode()) <= _NAME_MAX
    ]


def _spellings(text: str) -> Iterable[str]:
    """Yield a container as it was written, and as Docker Hub images are usually written."""
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
