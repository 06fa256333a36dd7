"""The program below the hooks cannot start, or dies: the job fails, the node stays."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcimg.cache.paths import Layout
from hpcimg.cache.store import ref_id
from hpcimg.locks import held
from tests.comment_cases import ASKS, MISSED, PROBLEMS
from tests.parts.daemon import TIMEOUT_S
from tests.parts.images import make_sif
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

# What those of os lack that were built on a system of 2014, as conda's are.
OLD_PYTHON = """
import os, posix
def without_setsid(*args, _spawn=posix.posix_spawn, setsid=False, **options):
    if setsid:
        raise NotImplementedError("posix_spawn: setsid unavailable on this platform")
    return _spawn(*args, **options)
for module in os, posix:
    for name in "memfd_create", "pidfd_open":
        vars(module).pop(name, None)
    module.posix_spawn = without_setsid
"""
COMMENT = "container:/no/such/image.sif"
KILLED_AT_ONCE = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
MODULE_MISSING = "import no_such_module_anywhere\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout, to be broken, with the same interpreter."""
    copy = tmp_path / "checkout"
    for name in ("hpcimg", "prolog", "epilog"):
        shutil.copytree(ROOT / name, copy / name)
    if (ROOT / ".venv").exists():
        (copy / ".venv").symlink_to(ROOT / ".venv")
    return copy


def run(node: Node, hook: Path, job: int, comment: str = COMMENT) -> str:
    """Run a hook, which must end with 0; return what it printed."""
    done = subprocess.run(
        [str(hook)],
        env=node.environment(job, comment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, "slurmd would drain the node"
    return done.stdout


@pytest.mark.parametrize("text", [MODULE_MISSING, KILLED_AT_ONCE, "not Python\n"])
def test_the_full_program(text: str, checkout: Path, node: Node) -> None:
    (checkout / "hpcimg" / "stage.py").write_text(text)
    run(node, checkout / "prolog" / "hpcimg-prolog", 1)
    task = node.task(1)
    assert task.code == 1
    assert "Prolog was interrupted on node n1" in task.printed
    run(node, checkout / "epilog" / "hpcimg-epilog", 1)
    # What the short way does is done all the same.
    assert list((node.state / "jobs").iterdir()) == []


@pytest.mark.parametrize("text", [MODULE_MISSING, KILLED_AT_ONCE])
def test_the_short_way(text: str, checkout: Path, node: Node) -> None:
    """The full program does everything, and reports what is wrong with the request."""
    (checkout / "hpcimg" / "slurm" / "warm.py").write_text(text)
    run(node, checkout / "prolog" / "hpcimg-prolog", 1)
    task = node.task(1)
    assert task.code == 1
    assert "there is no file /no/such/image.sif" in task.printed
    run(node, checkout / "epilog" / "hpcimg-epilog", 1)
    assert list((node.state / "jobs").iterdir()) == []


def test_no_interpreter_that_works(checkout: Path, node: Node) -> None:
    (checkout / ".venv").unlink(missing_ok=True)
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/no/such/interpreter\n")
    python.chmod(0o755)
    assert "not found" in run(node, checkout / "prolog" / "hpcimg-prolog", 1)
    task = node.task(1)
    assert task.code == 1
    assert "Prolog was interrupted on node n1" in task.printed
    run(node, checkout / "epilog" / "hpcimg-epilog", 1)


@pytest.mark.parametrize(
    "comment",
    ["", "no image", "mycontainer:x", "container test run", "docs at https://example.org/a"],
)
def test_jobs_without_an_image_need_no_interpreter(
    comment: str, checkout: Path, node: Node
) -> None:
    (checkout / ".venv").unlink(missing_ok=True)
    (checkout / "hpcimg" / "slurm" / "warm.py").write_text("not Python\n")
    (checkout / "hpcimg" / "slurm" / "prolog.py").write_text("not Python\n")
    run(node, checkout / "prolog" / "hpcimg-prolog", 1, comment)
    task = node.task(1)
    assert (task.code, task.printed, task.exports) == (0, "", {})
    assert not (node.state / "jobs" / "1").exists()


@pytest.mark.parametrize("before", ["container:x", "a b\tcontainer:x", "a;container:x"])
def test_whatever_is_around_the_name(before: str, checkout: Path, node: Node) -> None:
    for name in ("warm", "prolog"):
        (checkout / "hpcimg" / "slurm" / f"{name}.py").write_text(KILLED_AT_ONCE)
    run(node, checkout / "prolog" / "hpcimg-prolog", 1, before)
    assert node.task(1).code == 1
    # Not even the other hook is there: nothing is made anywhere.
    (checkout / "prolog" / "hpcimg-task-prolog").unlink()
    run(node, checkout / "prolog" / "hpcimg-prolog", 2, before)
    assert not (node.state / "jobs" / "2").exists()


def test_what_asks_for_an_image_is_seen_without_the_program(checkout: Path, node: Node) -> None:
    for name in ("warm", "prolog"):
        (checkout / "hpcimg" / "slurm" / f"{name}.py").write_text(KILLED_AT_ONCE)
    comments = [comment for comment, _ in (*ASKS, *MISSED, *PROBLEMS)]
    # A shell knows no typos.
    comments = [c for c in comments if "container" in c.lower() or "docker://" in c]
    for job, comment in enumerate(comments):
        run(node, checkout / "prolog" / "hpcimg-prolog", job, comment)
    seen = {int(path.name) for path in (node.state / "jobs").iterdir()}
    assert [comment for job, comment in enumerate(comments) if job not in seen] == []


def test_extra_is_seen_without_the_program(checkout: Path, node: Node) -> None:
    for name in ("warm", "prolog"):
        (checkout / "hpcimg" / "slurm" / f"{name}.py").write_text(KILLED_AT_ONCE)
    environment = {**node.environment(1), "SLURM_JOB_EXTRA": "container:/a.sif"}
    subprocess.run([checkout / "prolog" / "hpcimg-prolog"], env=environment, check=True)
    assert node.task(1).code == 1


def test_both_ways_killed_at_once(checkout: Path, node: Node) -> None:
    node.prolog(1, COMMENT)
    for name in ("warm", "prolog"):
        (checkout / "hpcimg" / "slurm" / f"{name}.py").write_text(KILLED_AT_ONCE)
    run(node, checkout / "prolog" / "hpcimg-prolog", 2)
    task = node.task(2)
    assert task.code == 1
    assert "Prolog was interrupted on node n1" in task.printed
    # What was said before is not touched.
    before = node.task(1)
    run(node, checkout / "prolog" / "hpcimg-prolog", 1)
    assert node.task(1) == before
    assert "there is no file" in before.printed
    # The directories are as the next job wants them.
    node.prolog(3, COMMENT)
    assert "there is no file" in node.task(3).printed


@pytest.mark.parametrize(
    ("module", "package"),
    [("locks", "filelock"), ("http/retry", "tenacity"), ("http/session", "urllib3")],
)
def test_a_package_that_is_missing(module: str, package: str, checkout: Path, node: Node) -> None:
    uri = "http://127.0.0.1:1/x.sif"
    path = checkout / "hpcimg" / f"{module}.py"
    path.write_text(path.read_text().replace(f"from {package} ", "from no_such_package "))
    path.write_text(path.read_text().replace(f"import {package}", "import no_such_package"))
    with ExitStack() as stack:
        if package == "filelock":  # needed only by who waits for a lock
            run(node, checkout / "prolog" / "hpcimg-prolog", 2)
            assert "there is no file" in node.task(2).printed
            lock = Layout(str(node.cache), str(node.state)).lock(ref_id(uri, None))
            stack.enter_context(held(lock, deadline=time.monotonic() + TIMEOUT_S))
        run(node, checkout / "prolog" / "hpcimg-prolog", 1, f"container:{uri}")
    task = node.task(1)
    assert task.code == 1
    assert "the Python package no_such_package is not installed on this node" in task.printed
    assert node.record(1)["class"] == "node"


@pytest.mark.parametrize(("code", "hook_ends"), [(43, 1), (42, 0), (1, 0), (2, 0), (137, 0)])
def test_the_one_exit_code_that_drains(
    code: int, hook_ends: int, checkout: Path, node: Node
) -> None:
    program = f"def limit_s(): return 30\ndef main(**_): return {code}\n"
    (checkout / "hpcimg" / "slurm" / "prolog.py").write_text(program)
    hook = checkout / "prolog" / "hpcimg-prolog"
    done = subprocess.run(
        [str(hook)], env=node.environment(1, COMMENT), timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == hook_ends


def test_only_a_cache_that_is_found_faulty_drains_the_node(checkout: Path, node: Node) -> None:
    hook = checkout / "prolog" / "hpcimg-prolog"
    node.configure("[policy]\non_node_fault = drain\n")
    run(node, hook, 1)
    # The word of the error alone is not enough: it may come of what a user named.
    stage = checkout / "hpcimg" / "stage.py"
    text = stage.read_text()
    raises = "def stage(*_, **__):\n    raise CacheUnusable('x')\n"
    stage.write_text(f"{text}\nfrom hpcimg.errors import CacheUnusable\n\n{raises}")
    run(node, hook, 2)
    assert node.record(2)["class"] == "node"
    stage.write_text(text)
    (node.cache / "images").rename(node.cache / "kept")
    (node.cache / "images").touch()
    done = subprocess.run(
        [str(hook)], env=node.environment(3, COMMENT), timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 1
    assert "is not a directory" in node.task(3).printed
    node.configure()
    run(node, hook, 4)


def test_a_python_that_was_built_on_an_old_system(
    checkout: Path, node: Node, web: WebServer
) -> None:
    image = make_sif(node.directory / "image.sif", {"name": b"x"})
    comment = f"container:{web.put('/image.sif', image.read_bytes())}"
    package = checkout / "hpcimg" / "__init__.py"
    package.write_text(f"{package.read_text()}\n{OLD_PYTHON}")
    run(node, checkout / "prolog" / "hpcimg-prolog", 1, comment)
    assert node.task(1).code == 0, node.task(1).printed
