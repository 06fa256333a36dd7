"""A root file system of a Debian release, with a copy of this checkout in it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.parts.daemon import PATH

ENTER = Path(__file__).with_name("enter.sh")
HERE = Path(__file__).parents[2]
# What the checkout's own Makefile does not install.
PACKAGES = "ca-certificates,git,make,python3,python3-venv"
# Created by commands in a checkout, and expensive to create again.
KEPT = (".venv", ".bench")
# How this host reaches package servers, if its environment says so.
_PASSED_ON = re.compile(r"PIP_\w+|SSL_CERT_\w+|\w+_CA_BUNDLE|\w+_PROXY", re.IGNORECASE)
_HOST_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pip.conf",
    "/etc/hosts",
    "/etc/resolv.conf",
)


class Root:
    """One release's root file system below a directory; it is made once and kept.

    Commands run in it as root, on the host's network and with its devices, in mount and PID
    namespaces of their own: no mount and no process outlives them.
    """

    def __init__(self, directory: Path, release: str, *, packages: str = PACKAGES) -> None:
        self.release = release
        self.packages = packages
        self.path = directory / release
        self.checkout = self.path / "hpcimg"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the root for exclusive use, after waiting for other users."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def make(self, mirror: str) -> None:
        """Create the root unless it exists. Raises CalledProcessError."""
        if self.path.exists():
            return
        part = self.path.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        debootstrap = ["debootstrap", "--variant=minbase", f"--include={self.packages}"]
        # It mounts as well.
        _run([*_namespaces(), "--mount-proc", *debootstrap, self.release, str(part), mirror])
        part.chmod(0o755)
        part.rename(self.path)

    def update(self) -> None:
        """Copy this host's settings for package servers and the files of this checkout."""
        self._copy_settings()
        self._remove_old_files()
        self._copy_files()

    def run(self, argv: Sequence[str]) -> None:
        """Run a command in the checkout's copy; raise CalledProcessError."""
        _run(self._argv(argv))

    def output(self, argv: Sequence[str]) -> str:
        """Run a command in the checkout's copy; return its output. Raises CalledProcessError."""
        return _output(self._argv(argv))

    def _copy_settings(self) -> None:
        settings = _output(["apt-config", "dump", "Acquire"])
        (self.path / "etc/apt/apt.conf.d/90host").write_text(settings)
        for name in {*_HOST_FILES, *_environment().values()}:
            if name.startswith("/") and Path(name).is_file():
                target = self.path / name[1:]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, target)

    def _remove_old_files(self) -> None:
        self.checkout.mkdir(exist_ok=True)
        for path in self.checkout.iterdir():
            if path.name in KEPT:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _copy_files(self) -> None:
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in filter(None, _output(listing).split("\0")):
            source, target = HERE / name, self.checkout / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)

    def _argv(self, argv: Sequence[str]) -> list[str]:
        return [*_namespaces(), str(ENTER), str(self.path), "/hpcimg", *argv]


def host_mirror() -> str:
    """Return the Debian archive that this host's apt uses, or an empty string."""
    query = ["apt-get", "indextargets", "--format=$(REPO_URI)", "Created-By: Packages"]
    found = _output([*query, "Origin: Debian", "Label: Debian"]).splitlines()
    return found[0] if found else ""


def _namespaces() -> list[str]:
    # Everything ends when unshare does, and unshare ends when we do.
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return ["setpriv", "--pdeathsig", "KILL", *unshare]


def _environment() -> dict[str, str]:
    passed_on = {
        name: value
        for name, value in os.environ.items()
        # Files are copied, directories are not.
        if _PASSED_ON.fullmatch(name) and not Path(value).is_dir()
    }
    return {**passed_on, "PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}


def _run(argv: Sequence[str]) -> None:
    subprocess.run(argv, cwd=HERE, env=_environment(), stdin=subprocess.DEVNULL, check=True)


def _output(argv: Sequence[str]) -> str:
    return subprocess.run(
        argv,
        cwd=HERE,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
