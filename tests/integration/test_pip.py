"""Installation with pip, from the sdist to hooks that stage an image."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
import requests

from hpcimg import __version__
from hpcimg.cli import hooks
from hpcimg.errors import NodeError
from tests.parts import images, node
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

_NO_INDEX = re.compile(r"No matching distribution|NewConnectionError|ConnectTimeout|HTTP error")
_NOT_SOURCES = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode and _NO_INDEX.search(done.stdout + done.stderr):
        pytest.skip("pip reaches no package index here")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that the unprivileged account can enter."""
    with tempfile.TemporaryDirectory(prefix="pip-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def built(directory: Path) -> Path:
    """An sdist of this checkout, and a wheel of that sdist."""
    shutil.copytree(ROOT, directory / "source", ignore=_NOT_SOURCES)
    run(sys.executable, "-m", "build", "--outdir", directory / "built", directory / "source")
    return directory / "built"


def test_the_sdist_is_complete(built: Path) -> None:
    with tarfile.open(built / f"hpcimg-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    command = ["git", "-C", str(ROOT), "ls-files"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    there = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert {name for name in there - names if not name.startswith(".")} == set()


def test_what_the_wheel_needs(built: Path) -> None:
    with ZipFile(built / f"hpcimg-{__version__}-py3-none-any.whl") as wheel:
        metadata = wheel.read(f"hpcimg-{__version__}.dist-info/METADATA").decode()
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert set(needed) == {"filelock", "requests", "tenacity", "urllib3"}


def test_what_is_in_the_wheel(built: Path) -> None:
    with ZipFile(built / f"hpcimg-{__version__}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    shared = {"prolog", "epilog", "etc", "man"}
    here = {str(path.relative_to(ROOT)) for path in ROOT.glob("hpcimg/**/*.py")}
    for directory in shared:
        files = [path for path in (ROOT / directory).rglob("*") if path.is_file()]
        here |= {f"hpcimg/share/{path.relative_to(ROOT)}" for path in files}
    assert names == here


@pytest.mark.skipif(images.missing() != "", reason=images.missing() or "-")
def test_its_hooks_stage_an_image(
    built: Path, directory: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = directory / "with space"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    # What it needs is lent by the environment of this test.
    [site] = venv.glob("lib/*/site-packages")
    (site / "lent.pth").write_text(f"{Path(requests.__file__).parents[1]}\n")
    [wheel] = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin/python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    printed = run(venv / "bin/hpcimg", "hooks", directory / "hooks")
    assert printed.splitlines() == [
        f"Prolog={directory}/hooks/hpcimg-prolog",
        f"TaskProlog={directory}/hooks/hpcimg-task-prolog",
        f"Epilog={directory}/hooks/hpcimg-epilog",
    ]
    for hook in ("PROLOG", "TASK_PROLOG", "EPILOG"):
        monkeypatch.setattr(node, hook, directory / "hooks" / getattr(node, hook).name)
    place = Node(directory)
    image = images.make_sif(directory / "x.sif", {"hello": b"world"})
    url = web.put("/x.sif", image.read_bytes(), etag='"1"')
    for job in (1, 2):
        task = place.stage(job, f"container:{url}")
        assert task.code == 0, place.log()
        assert place.record(job)["images"][0]["source"] == ("fetched", "hit")[job - 1]
        place.epilog(job)
    assert place.leases() == set()
    # Whatever becomes of the installation, a job that asked for an image says why it has none.
    shutil.rmtree(venv)
    done = subprocess.run(
        [node.PROLOG],
        env=place.environment(3, f"container:{url}"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert "Prolog was interrupted" in place.task(3).printed


def test_no_hooks_of_what_others_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    arguments = argparse.Namespace(directory=str(tmp_path / "hooks"), json=False)
    tmp_path.chmod(0o777)
    with pytest.raises(NodeError, match=f"all users can write to {tmp_path}"):
        hooks.run(arguments)
    tmp_path.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 12345)
        with pytest.raises(NodeError, match=f"{tmp_path} belongs to uid 12345"):
            hooks.run(arguments)
    assert not (tmp_path / "hooks").exists()
