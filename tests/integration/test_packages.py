"""What is in the packages, that it runs as it is, and that two builds are the same.

`make test-packages` installs, upgrades and removes them.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg import __version__
from tests.parts import images, node
from tests.parts.daemon import missing_commands
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

_NO_INDEX = re.compile(r"No matching distribution|NewConnectionError|ConnectTimeout|HTTP error")
LIBRARIES = {
    "certifi", "charset_normalizer", "filelock", "idna", "requests", "tenacity", "urllib3",
}  # fmt: skip
PACKAGE = Path("usr/lib/hpcimg/package")


def run(script: str, *arguments: Path, umask: int = -1, **surroundings: str) -> Path:
    """Run one of the scripts that package; return the path that it prints, if any."""
    done = subprocess.run(
        [ROOT / "packaging" / script, *arguments],
        env={**os.environ, "PYTHON": sys.executable, **surroundings},
        capture_output=True,
        text=True,
        umask=umask,
        check=False,
    )
    if done.returncode and _NO_INDEX.search(done.stderr):
        pytest.skip("pip reaches no package index here")
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A directory that the unprivileged account can enter."""
    with tempfile.TemporaryDirectory(prefix="packages-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def made(directory: Path) -> Path:
    """The tree that all packages are built from."""
    run("tree", directory / "made")
    return directory / "made"


@pytest.fixture(scope="module")
def deb(made: Path, directory: Path) -> Path:
    if missing := missing_commands("dpkg-deb"):
        pytest.skip(missing)
    return run("deb", made, directory / "built")


@pytest.fixture(scope="module")
def tree(deb: Path, directory: Path) -> Path:
    """The package's files, taken out of it."""
    subprocess.run(["dpkg-deb", "-x", deb, directory / "tree"], check=True)
    return directory / "tree"


def test_two_builds_are_the_same(deb: Path, directory: Path) -> None:
    surroundings = {"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}
    run("tree", directory / "other", umask=0o077, **surroundings)
    other = run("deb", directory / "other", directory / "again", umask=0o077, **surroundings)
    assert other.read_bytes() == deb.read_bytes()


def test_what_dpkg_is_told(deb: Path) -> None:
    fields = subprocess.check_output(["dpkg-deb", "--field", deb], text=True)
    kept = subprocess.check_output(["dpkg-deb", "--info", deb, "conffiles"], text=True)
    assert kept.split() == ["/etc/hpcimg/hpcimg.conf", "/etc/logrotate.d/hpcimg"]
    assert f"Version: {__version__}\nArchitecture: all\n" in fields
    assert deb.name == f"hpcimg_{__version__}_all.deb"
    listed = subprocess.check_output(["dpkg-deb", "--contents", deb], text=True).splitlines()
    assert {line.split()[1] for line in listed} == {"root/root"}
    assert [line for line in listed if re.match(r"[^l].......w.|...[sS]|......[sS]", line)] == []


def test_what_is_in_it(tree: Path) -> None:
    parts = {path.name for path in (tree / PACKAGE).iterdir() if not path.name.endswith("-info")}
    assert parts == LIBRARIES | {"hpcimg", "prolog", "epilog", "bin"}
    for path in (*ROOT.glob("hpcimg/**/*.py"), *ROOT.glob("bin/*"), *ROOT.glob("*log/*")):
        assert (tree / PACKAGE / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    for path in ROOT.glob("man/man?/*"):
        assert (tree / "usr/share/man" / path.parent.name / f"{path.name}.gz").exists()
    doc = tree / "usr/share/doc/hpcimg"
    for path in (*ROOT.glob("docs/*"), ROOT / "README.md", ROOT / "CHANGELOG.md"):
        assert (doc / path.relative_to(ROOT)).exists()
    examples, etc = doc / "examples", ROOT / "etc"
    assert {p.relative_to(examples) for p in examples.rglob("*")} == {
        p.relative_to(etc) for p in etc.rglob("*")
    }
    for directory, place in (
        ("systemd", "usr/lib/systemd/system"),
        ("tmpfiles.d", "usr/lib/tmpfiles.d"),
        ("logrotate.d", "etc/logrotate.d"),
    ):
        for path in (ROOT / "etc" / directory).iterdir():
            assert (tree / place / path.name).read_bytes() == path.read_bytes()
    # The documentation names the places of this package.
    example = (doc / "examples/slurm.conf.example").read_text()
    assert "Prolog=/usr/lib/hpcimg/prolog/hpcimg-prolog\n" in example
    for name in ("bash-completion/completions/hpcimg", "zsh/vendor-completions/_hpcimg",
                 "fish/vendor_completions.d/hpcimg.fish"):  # fmt: skip
        assert "doctor" in (tree / "usr/share" / name).read_text()
    assert list(tree.rglob("*.so")) + list(tree.rglob("*.pyc")) == []


def test_nothing_names_the_place_where_it_was_built(tree: Path, directory: Path) -> None:
    places = [bytes(ROOT), bytes(directory), sys.prefix.encode()]
    # A checkout at /hpcimg, say, has a path in which others end.
    places = [place for place in places if place.count(b"/") > 1]
    for path in tree.rglob("*"):
        assert socket.gethostname() not in path.name
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert [place for place in places if place in data] == [], path


@pytest.mark.skipif(images.missing() != "", reason=images.missing() or "-")
def test_it_runs_with_the_python_of_the_node_and_nothing_else(
    tree: Path, directory: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A copy: byte code is written beside it.
    package = shutil.copytree(tree / PACKAGE, directory / "copy")
    found = subprocess.run([package / "bin/find-python"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("there is no Python 3.11 or newer in /usr/bin")
    for hook in ("PROLOG", "TASK_PROLOG", "EPILOG"):
        monkeypatch.setattr(node, hook, package / getattr(node, hook).relative_to(ROOT))
    place = Node(directory)
    image = images.make_sif(directory / "x.sif", {"hello": b"world"})
    url = web.put("/x.sif", image.read_bytes(), etag='"1"')
    for job in (1, 2):
        task = place.stage(job, f"container:{url}")
        assert task.code == 0, place.log()
        assert task.image.read_bytes() == image.read_bytes()
    assert place.record(2)["images"][0]["source"] == "hit"
    # Its libraries are its own, where the node has some of the same names, too.
    program = "import sys; sys.path.insert(0, sys.argv[1]); import requests, urllib3, filelock;"
    show = "print(*(m.__file__ for m in (requests, urllib3, filelock)))"
    python = found.stdout.decode().strip()
    shown = subprocess.check_output([python, "-I", "-B", "-c", program + show, package], text=True)
    assert all(path.startswith(str(package)) for path in shown.split())
    environment = {"HPCIMG_CONF": str(place.conf)}
    command = [package / "bin/hpcimg", "path", url]
    assert subprocess.check_output(command, env=environment, text=True) == f"{task.image}\n"


def test_the_rpm(made: Path, directory: Path) -> None:
    if missing := missing_commands("rpm", "rpmbuild"):
        pytest.skip(missing)
    package = run("rpm", made, directory / "built")
    assert package.name == f"hpcimg-{__version__}-1.noarch.rpm"

    def query(what: str) -> list[str]:
        command = ["rpm", "--query", f"--{what}", "--package", package]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).splitlines()

    assert "python(abi) >= 3.11" in query("requires")
    assert query("configfiles") == ["/etc/hpcimg/hpcimg.conf", "/etc/logrotate.d/hpcimg"]
    assert {"/usr/lib/hpcimg/prolog", "/usr/bin/hpcimg"} <= set(query("list"))
    units = [f"/usr/lib/systemd/system/{path.name}" for path in ROOT.glob("etc/systemd/*")]
    assert {*units, "/usr/lib/tmpfiles.d/hpcimg.conf"} <= set(query("list"))
    assert socket.gethostname() not in query("info")


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"python3": "3.12"}, "python3"),
        ({"python3": "3.9", "python3.11": "3.11", "python3.13": "3.13"}, "python3.13"),
        ({"python3.11": "3.11"}, "python3.11"),
        ({"python3": "3.6"}, None),
        ({}, None),
    ],
)
def test_the_python_that_is_taken(
    versions: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    for name, version in versions.items():
        # Python's part here: to compare the version that it has.
        number = tuple(int(part) for part in version.split("."))
        replaced = f"import sys; sys.version_info = {number}; exec(sys.argv[-1])"
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {sys.executable} -c "{replaced}" "$@"\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / "bin/find-python", tmp_path], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.stdout == f"{tmp_path}/{expected or 'python3'}\n"
    assert done.returncode == (0 if expected else 1)


def test_the_hooks_fall_back(tmp_path: Path, node: Node) -> None:
    """If the configured Python is gone, they search for one."""
    for name in ("hpcimg", "prolog", "epilog", "bin"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name)
    (tmp_path / "tree/python").symlink_to("/usr/bin/no-such-python")
    found = tmp_path / "tree/bin/find-python"
    found.write_text(f"#!/bin/sh\necho {sys.executable}\n")
    hook = tmp_path / "tree/prolog/hpcimg-prolog"
    subprocess.run([hook], env=node.environment(1, "container:/no/such.sif"), check=True)
    assert "there is no file /no/such.sif" in node.task(1).printed
