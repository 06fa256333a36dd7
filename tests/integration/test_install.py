"""The tree made by `make install` runs where it is, and where it is moved to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg import __version__
from tests.parts import images, node
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

pytestmark = [
    pytest.mark.skipif(images.missing() != "", reason=images.missing()),
    pytest.mark.timeout(900),
]

PREFIX = "/opt/hpcimg"
_NO_INDEX = re.compile(r"No matching distribution|NewConnectionError|ConnectTimeout|HTTP error")
_UNCHECKED_HASH = 1  # PEP 552: flags of byte code that is not compared with its source


def make_install(destdir: Path) -> Path:
    """Install below destdir, under a umask that gives others nothing; return the tree."""
    command = f'umask 077; make install PYTHON="{sys.executable}" DESTDIR="{destdir}"'
    done = subprocess.run(
        ["sh", "-c", f"{command} PREFIX={PREFIX}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and _NO_INDEX.search(done.stderr):
        pytest.skip("pip reaches no package index here")
    assert done.returncode == 0, done.stdout + done.stderr
    return destdir / PREFIX.lstrip("/")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that the unprivileged account can enter."""
    directory = Path(tempfile.mkdtemp(prefix="install-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def all_files(tree: Path) -> set[Path]:
    return {path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()}


def check_tree(tree: Path, destdir: Path) -> None:
    """Check that all users can read it, it does not contain its build path, and is compiled."""
    assert [path for path in tree.rglob("*") if not path.stat().st_mode & 0o004] == []
    assert [path for path in all_files(tree) if bytes(destdir) in path.read_bytes()] == []
    for source in tree.rglob("*.py"):
        compiled = (
            source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        )
        assert compiled.read_bytes()[4] == _UNCHECKED_HASH, source
    for name in ("man1/hpcimg.1", "man5/hpcimg.conf.5", "man8/hpcimg-prolog.8"):
        assert (tree / "share/man" / name).exists()
    for name in ("bash-completion/completions/hpcimg", "zsh/site-functions/_hpcimg",
                 "fish/vendor_completions.d/hpcimg.fish"):  # fmt: skip
        assert "doctor" in (tree / "share" / name).read_text()
    for path in all_files(ROOT / "etc"):
        there = path.read_bytes()
        if path.parent.name == "systemd":  # units name the program by its full path
            there = there.replace(b"/usr/lib/hpcimg", PREFIX.encode())
        assert (tree / path.relative_to(ROOT)).read_bytes() == there


def test_the_installed_tree_runs_wherever_it_is(
    directory: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    destdir = directory / "dest"
    tree = make_install(destdir)
    check_tree(tree, destdir)

    (tree / "hpcimg" / "dropped.py").write_text("")
    assert make_install(destdir) == tree
    assert not (tree / "hpcimg" / "dropped.py").exists()

    tree = tree.rename(directory / "moved")
    before = all_files(tree)
    for hook in ("PROLOG", "TASK_PROLOG", "EPILOG"):
        monkeypatch.setattr(node, hook, tree / getattr(node, hook).relative_to(ROOT))
    place = Node(directory)
    image = images.make_sif(directory / "x.sif", {"hello": b"world"})
    url = web.put("/x.sif", image.read_bytes(), etag='"1"')
    cold = place.stage(1, f"container:{url}")
    assert cold.code == 0, place.log()
    assert cold.image.read_bytes() == image.read_bytes()
    assert place.stage(2, f"container:{url}").code == 0
    assert web.count("GET") == 1
    place.epilog(1)
    place.epilog(2)
    assert place.leases() == set()

    linked = directory / "hpcimg"
    linked.symlink_to(tree / "bin" / "hpcimg")
    run = {"env": {"HPCIMG_CONF": str(place.conf)}, "cwd": "/", "text": True}
    assert subprocess.check_output([linked, "--version"], **run) == f"hpcimg {__version__}\n"
    assert subprocess.check_output([linked, "path", url], **run) == f"{cold.image}\n"
    # Nothing wrote byte code: what was installed was used.
    assert all_files(tree) == before
