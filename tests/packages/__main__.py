"""Build two releases of each package and take them through their life in a clean Debian.

The second release is this checkout with another version, and with modules that refuse to be mixed
with those of the first. What is done in the root file system is in `inside.py`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.matrix.roots import HERE, Root, host_mirror
from tests.parts import docblocks
from tests.parts.daemon import missing_commands

RELEASE = "bookworm"
LATER = "99.0"
COMMANDS = ("apt-get", "debootstrap", "git", "pivot_root", "rpm", "rpmbuild", "setpriv", "unshare")
_REFUSAL = f"""
import hpcimg
if hpcimg.__version__ != "{LATER}":
    raise ImportError("modules of two releases are mixed")
"""


def main() -> int:
    """Run everything. Raises if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.packages", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(".matrix"))
    directory = parser.parse_args().directory.absolute()
    if os.geteuid() != 0:
        print("test-packages: needs root, to make root file systems and to mount in them")
        return 1
    if missing := missing_commands(*COMMANDS):
        print(f"test-packages: {missing}")
        return 1
    pristine = Root(directory / "pristine", RELEASE, packages="ca-certificates")
    with pristine.locked():
        pristine.make(host_mirror())
        root = Root(directory / "packages", RELEASE)
        shutil.rmtree(root.path, ignore_errors=True)
        root.path.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", str(pristine.path), str(root.path)], check=True)
        root.update()
        with tempfile.TemporaryDirectory() as scratch:
            later = later_release(Path(scratch) / "later")
            build(HERE, root.path / "srv" / "first")
            build(later, root.path / "srv" / "later")
        check_deb(root)
        check_rpm(root)
    print("test-packages: all is well")
    return 0


def build(checkout: Path, directory: Path) -> None:
    """Build both packages twice, in different environments. Raises if the results differ."""
    for number, umask in enumerate((0o022, 0o077)):
        place, tree = directory / str(number), directory / f"tree-{number}"
        environment = {**os.environ, "TZ": f"UTC{number}", "PYTHON": sys.executable}
        for script, *arguments in (
            ("tree", tree),
            ("deb", tree, place),
            ("rpm", tree, place),
        ):
            command = [checkout / "packaging" / script, *arguments]
            subprocess.run(command, env=environment, umask=umask, check=True)
    for package in (directory / "0").iterdir():
        if package.read_bytes() != (directory / "1" / package.name).read_bytes():
            raise AssertionError(f"two builds of {package.name} differ")


def later_release(directory: Path) -> Path:
    """Copy this checkout, turn the copy into a later release, and return its path."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (HERE / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HERE / name, directory / name)
    for path in (directory / "hpcimg").rglob("*.py"):
        if path == directory / "hpcimg/__init__.py":
            before, _, _ = path.read_text().partition("__version__")
            path.write_text(f'{before}__version__ = "{LATER}"\n')
        else:
            path.write_text(path.read_text() + _REFUSAL)
    return directory


def check_deb(root: Root) -> None:
    """Test the package with apt-get, as an administrator would use it."""
    root.run(["apt-get", "update", "-q"])
    blocks = docblocks.blocks(HERE / "docs/howto-install.md", "sh")
    [install] = [block.text for block in blocks if block.text.startswith("apt-get install")]
    shutil.copytree(root.path / "srv/first/0", root.checkout / "build")
    (root.path / "etc/apt/apt.conf.d/91yes").write_text('APT::Get::Assume-Yes "true";')
    root.run(["sh", "-c", f"touch /before; {install}"])
    for step in ("installed", "deb-upgraded", "python-changed", "removed", "purged"):
        inside(root, step)


def check_rpm(root: Root) -> None:
    """Test the RPM with rpm, from outside; Debian's packages satisfy its dependencies."""
    rpm = ["rpm", "--root", str(root.path), "--nodeps", "--nosignature"]
    first, later = (str(next((root.path / "srv").glob(f"{n}/0/*.rpm"))) for n in ("first", "later"))
    subprocess.run([*rpm, "--install", first], check=True)
    inside(root, "installed")
    conf = root.path / "etc/hpcimg/hpcimg.conf"
    conf.write_text("[cache]\nmax_size = 1G\n")
    subprocess.run([*rpm, "--upgrade", later], check=True)
    inside(root, "rpm-upgraded")
    subprocess.run([*rpm, "--erase", "hpcimg"], check=True)
    inside(root, "rpm-removed")


def inside(root: Root, step: str) -> None:
    print(f"== {step}", flush=True)
    root.run(["python3", "-m", "tests.packages.inside", step])


if __name__ == "__main__":
    sys.exit(main())
