"""One image in all the forms that it can have on a file system, written by skopeo."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.parts.daemon import PATH, missing_commands
from tests.parts.registry import Registry

SCHEMES = ("oci", "oci-archive", "docker-archive")


def missing() -> str:
    """Return a sentence that says what this host lacks to write them, or an empty string."""
    return missing_commands("skopeo")


def save(registry: Registry, name: str, directory: Path) -> None:
    """Copy an image, "repository:tag", to directory/SCHEME for each scheme; all may read it."""
    for scheme in SCHEMES:
        to = f"{scheme}:{directory}/{scheme}:{name}"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
            + [f"docker://{registry.host}/{name}", to],
            check=True,
            env={"PATH": PATH, "HOME": "/nonexistent"},
        )
    subprocess.run(["chmod", "-R", "a+rX", str(directory)], check=True)
