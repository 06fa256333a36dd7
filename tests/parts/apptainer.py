"""A real Apptainer, if this host has one, and key pairs that sign SIF images with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.parts import ociimages
from tests.parts.daemon import PATH, PartError

_GENERIC = "7"  # as `apptainer sif add` counts


def missing() -> str:
    """Return a sentence that says what this host lacks to run images, or an empty string."""
    if shutil.which("apptainer", path=PATH) is None:
        return "apptainer is not installed here"  # not every release has it
    return ociimages.missing()


class Signer:
    """Somebody with a key pair, in a directory of its own.

    `public` is what this one gives to others, as `apptainer key export` writes it.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Make the directory and the keys."""
        self._directory = directory / f"keys-of-{name}"
        self._directory.mkdir(mode=0o700)
        self.public = directory / f"{name}.asc"
        # Small keys, which are generated quickly.
        words = [f"--name={name}", f"--email={name}@example.org", "--comment=for a test"]
        self._run("key", "newpair", *words, "--password=", "--push=false", "--bit-length=2048")
        self._run("key", "export", "--armor", str(self.public), says="0\n")

    def sign(self, image: Path) -> Path:
        """Sign everything in the image; return its path."""
        self._run("sign", str(image))
        return image

    def _run(self, *arguments: str, says: str = "") -> None:
        run(*arguments, home=self._directory, says=says)


def add_part(image: Path, *, group: int) -> Path:
    """Add an unsigned part to an image, in a group, or with 0 in none; return its path."""
    content = image.with_suffix(".part")
    content.write_text("more\n")
    words = ["--datatype", _GENERIC, "--groupid", str(group)]
    run("sif", "add", *words, str(image), str(content), home=image.parent)
    return image


def run(*arguments: str, home: Path, says: str = "") -> None:
    """Run Apptainer with its keys in a directory and this input. Raises PartError."""
    environment = {"PATH": PATH, "HOME": str(home), "APPTAINER_KEYSDIR": str(home)}
    argv = ["apptainer", *arguments]
    done = subprocess.run(
        argv, env=environment, input=says, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise PartError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
