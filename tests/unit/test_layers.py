"""The dependency rule: which modules may import which, including imports inside functions."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

import pytest

from hpcimg import schemes

PACKAGE = Path(__file__).resolve().parents[2] / "hpcimg"
MODULES = {row.module for row in (*schemes.SCHEMES.values(), schemes.STATIC)}
TOP = ("hpcimg.cli", "hpcimg.slurm")
# Who, and what it must not reach, not even through others.
FORBIDDEN = {
    "hpcimg.cache": (
        "hpcimg.sources", "hpcimg.stage", "hpcimg.node", "hpcimg.worker", "hpcimg.site",
        "hpcimg.http", *TOP,
    ),
    "hpcimg.sources": (
        "hpcimg.cache", "hpcimg.stage", "hpcimg.site", "hpcimg.worker", "hpcimg.config", *TOP,
    ),
    # It runs with a user's rights or nobody's: the cache is not its business.
    "hpcimg.worker": ("hpcimg.cache", "hpcimg.stage", "hpcimg.site", "hpcimg.config", *TOP),
    "hpcimg.stage": TOP,
    "hpcimg.fronts": ("hpcimg.stage", *TOP),
    # In a process beside Prolog, on a file system that may not answer.
    "hpcimg.tier.keeper": ("hpcimg.cache", "hpcimg.worker", "hpcimg.site", "hpcimg.stage", *TOP),
    # What meets the network is not root, and what is root does not load it.
    "hpcimg.peers.member": ("hpcimg.cache", "hpcimg.stage", "hpcimg.site", "hpcimg.config", *TOP),
    "hpcimg.peers.swarm": ("hpcimg.peers.engine", "hpcimg.peers.asking", *TOP),
    "hpcimg.node": ("hpcimg.sources", "hpcimg.worker", "hpcimg.site", "hpcimg.stage", *TOP),
    "hpcimg.status": TOP,
    # It reads what strangers made: only bytes go in, one file comes out.
    "hpcimg.convert": (
        "hpcimg.cache", "hpcimg.sources", "hpcimg.stage", "hpcimg.worker", "hpcimg.config",
        "hpcimg.http", "hpcimg.reference", *TOP,
    ),
    "hpcimg.slurm": ("hpcimg.cli",),
    "hpcimg.http": ("hpcimg.sources", "hpcimg.cache", "hpcimg.worker", "hpcimg.config"),
    "hpcimg.http.session": ("hpcimg.http.download",),
    "hpcimg.fetch": ("hpcimg.sources", "hpcimg.cache", "hpcimg.worker", "hpcimg.config"),
    "hpcimg.reference": ("hpcimg.config", "hpcimg.sources", "hpcimg.cache"),
    "hpcimg.config": ("hpcimg.sources", "hpcimg.cache", "hpcimg.reference", "hpcimg.site"),
}  # fmt: skip
# Packages that are behind the few modules that know them.
ONLY_IN = {
    "filelock": ("hpcimg.locks",),
    "tenacity": ("hpcimg.http.retry",),
    "requests": ("hpcimg.http.proxies", "hpcimg.http.connections"),
    "urllib3": ("hpcimg.http",),
    "argparse": ("hpcimg.cli",),
    "botocore": ("hpcimg.sources.aws",),
    "libtorrent": ("hpcimg.peers.engine",),
    "pyslurm": ("hpcimg.slurm.pyslurmjobs",),
}


def under(name: str, *parts: str) -> bool:
    """Tell whether a module is one of these, or in one of them."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


@functools.cache
def imports() -> dict[str, set[str]]:
    """Return what each module of hpcimg imports: modules of hpcimg, and others."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = path
    found = {name: named_in(path, known=set(files)) for name, path in files.items()}
    # The imports whose name is worked out at run time.
    for name in ("hpcimg.worker.main", "hpcimg.check"):
        found[name] |= MODULES
    return found


def named_in(path: Path, *, known: set[str]) -> set[str]:
    """Return what one file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in known else base)
    return found


def reached(start: str) -> set[str]:
    """Return all modules that importing one, or those in it, may load."""
    graph = imports()
    seen: set[str] = set()
    todo = [name for name in graph if under(name, start)]
    assert todo, f"there is no {start}"
    while todo:
        for name in graph.get(todo.pop(), set()) - seen:
            seen.add(name)
            todo.append(name)
    return seen


@pytest.mark.parametrize("who", FORBIDDEN)
def test_never_reaches(who: str) -> None:
    assert [name for name in reached(who) if under(name, *FORBIDDEN[who])] == []


def test_errors_import_nothing_of_ours() -> None:
    assert [name for name in imports()["hpcimg.errors"] if under(name, "hpcimg")] == []


def test_only_the_top_knows_the_top() -> None:
    below = [name for name in imports() if not under(name, *TOP)]
    assert [name for name in below if any(under(i, *TOP) for i in imports()[name])] == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_that_have_one_place(package: str) -> None:
    users = {name for name, found in imports().items() if any(under(i, package) for i in found)}
    assert users
    assert [name for name in users if not under(name, *ONLY_IN[package])] == []


def test_no_circles() -> None:
    tuple(graphlib.TopologicalSorter(imports()).static_order())


def test_the_reading_itself() -> None:
    assert "hpcimg.cache.store" in reached("hpcimg.stage")
    assert {"hpcimg.sources.web", "hpcimg.http.download", "urllib3"} <= reached(
        "hpcimg.worker.main"
    )
    assert "hpcimg.errors" in imports()["hpcimg.locks"]
    # Within a function, too.
    assert "pyslurm" in imports()["hpcimg.slurm.pyslurmjobs"]


def test_every_scheme_has_a_source() -> None:
    assert set(imports()) >= MODULES
