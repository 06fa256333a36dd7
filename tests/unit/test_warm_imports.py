"""The short way of the hooks: which modules it may load, and that it needs no network.

Each module costs a job time: json 8 ms, argparse 9, subprocess 12, requests 99.
Who adds one here has measured it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcimg.slurm import pyxis
from hpcimg.slurm import warm as warm_way
from tests.integration.checks import finish, wait_for_log
from tests.parts import images
from tests.parts.node import EPILOG, PROLOG, ROOT, Node
from tests.parts.webserver import WebServer

pytestmark = pytest.mark.skipif(bool(images.missing()), reason=images.missing() or "-")

# Not os: to load it takes an eighth of the time of a hit.
STANDARD = {"errno", "stat", "_stat", "time"}
OURS = {
    "hpcimg", "hpcimg.acl", "hpcimg.atomic", "hpcimg.config", "hpcimg.config.files",
    "hpcimg.plainfile",
    "hpcimg.plainjson",
    "hpcimg.cache", "hpcimg.cache.events", "hpcimg.cache.hot", "hpcimg.cache.lease",
    "hpcimg.cache.paths",
    "hpcimg.slurm", "hpcimg.slurm.comment", "hpcimg.slurm.jobfiles",
    "hpcimg.slurm.warm",
}  # fmt: skip
# As the hooks start it, with an eye on what it loads and on what it does.
PROGRAM = """
import sys
at_start = set(sys.modules)
done = []
sys.addaudithook(lambda name, _: done.append(name))
sys.path.insert(0, sys.argv[1])
from hpcimg.slurm.warm import main
code = main(sys.argv[2], [] if "waits" in sys.argv else None)
loaded = sorted(set(sys.modules) - at_start)
import json
print(json.dumps({"code": code, "loaded": loaded, "done": sorted(set(done))}))
"""
# And those of a job that waits for an image which another job brings.
WAITING = {"hpcimg.slurm.waiter", "hpcimg.cache.leader", "hpcimg.processes", "fcntl"}
FORBIDDEN_EVENTS = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.system")


@pytest.fixture
def warm(node: Node, web: WebServer, tmp_path: Path) -> str:
    """The comment of a job whose two images are on the node already."""
    words = []
    for name in ("a", "b"):
        sif = images.make_sif(tmp_path / name, {name: name.encode()})
        words.append(f"container:{name}={web.put(f'/{name}.sif', sif.read_bytes())}")
    assert node.stage(1, " ".join(words)).code == 0
    return " ".join(words)


def run(
    node: Node, hook: str, job: int, comment: str | None = None, *words: str
) -> dict[str, list[str] | int]:
    """Run the short way; return its exit code, what it loaded and what it did."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(ROOT), hook, *words],
        env=node.environment(job, comment),
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert isinstance(seen, dict)
    return seen


def test_a_hit(node: Node, web: WebServer, warm: str) -> None:
    asked = web.count()
    seen = run(node, "prolog", 2, warm)
    assert seen["code"] == 0
    assert set(seen["loaded"]) <= STANDARD | OURS
    assert [event for event in seen["done"] if event.startswith(FORBIDDEN_EVENTS)] == []
    # It did the work.
    assert [image["source"] for image in node.record(2)["images"]] == ["hit", "hit"]
    assert {job for _, job in node.leases()} == {"1", "2"}
    assert node.task(2).exports == node.task(1).exports
    assert web.count() == asked


def test_a_hit_on_a_mounted_file(node: Node, open_directory: Path) -> None:
    """A child process checks it, and no program is started."""
    path = images.make_sif(open_directory / "x.sif", {"x": b"x"})
    path.chmod(0o644)
    comment = f"container:{path}"
    assert node.stage(1, comment).code == 0
    seen = run(node, "prolog", 2, comment)
    assert seen["code"] == 0
    assert set(seen["loaded"]) <= STANDARD | OURS | {"hpcimg.look", "select"}
    assert [event for event in seen["done"] if event.startswith(FORBIDDEN_EVENTS)] == ["os.fork"]
    path.chmod(0o444)
    assert run(node, "prolog", 3, comment)["code"] == 10
    path.unlink()
    assert run(node, "prolog", 4, comment)["code"] == 10


@pytest.mark.parametrize("comment", [None, "", "just a note", "a long note " * 5000])
def test_a_job_without_an_image(node: Node, comment: str | None) -> None:
    seen = run(node, "prolog", 2, comment)
    assert seen["code"] == 0
    assert set(seen["loaded"]) <= STANDARD | OURS
    assert not node.state.exists()
    assert not node.cache.exists()


def test_a_comment_that_names_no_image_costs_not_even_a_look_at_the_configuration(
    node: Node,
) -> None:
    node.conf.unlink()
    assert run(node, "prolog", 2, "just a note")["code"] == 0


def test_a_hit_of_a_comment_in_json_loads_json_besides(node: Node, warm: str) -> None:
    [first, second] = warm.replace("container:", "").split()
    named = dict(word.split("=", 1) for word in (first, second))
    before = set(subprocess_modules("json"))
    seen = run(node, "prolog", 2, json.dumps({"wpps": 3, "container": named}))
    assert seen["code"] == 0
    assert set(seen["loaded"]) <= STANDARD | OURS | before
    assert node.task(2).exports == node.task(1).exports
    # An object that is none of ours, and all else, is read without it.
    for text in ('{"wpps": 3}', f"[{warm}]"):
        assert set(run(node, "prolog", 3, text)["loaded"]) <= STANDARD | OURS


def subprocess_modules(name: str) -> list[str]:
    """Return the modules that an import brings, the modules that Python starts with left out."""
    program = f"import sys; before = set(sys.modules); import {name}; "
    program += "print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], text=True, capture_output=True, check=True
    )
    return done.stdout.split()


def test_only_a_job_with_pyxis_loads_what_knows_it(node: Node, warm: str) -> None:
    for word in ("PYXIS_CONTAINER_IMAGE=docker://x", "PYXIS_CONTAINER_IMAGE=/x.sqsh"):
        seen = run(node, "prolog", 2, f"{warm} container:{word}")
        assert seen["code"] == 0
        assert set(seen["loaded"]) <= STANDARD | OURS | {"hpcimg.slurm.pyxis"}
        # No image of the job's own, and of nobody's where the site does not say so.
        assert node.task(2).exports == node.task(1).exports
    spelled = (warm_way._PYXIS_OPTION, warm_way._PYXIS_NAME)
    assert spelled == (pyxis.VARIABLE, pyxis.NAME)


def test_what_is_nearly_ours_is_left_to_the_long_way(node: Node) -> None:
    assert run(node, "prolog", 2, "containers:/a.sif")["code"] == 10
    assert run(node, "prolog", 2, '{"container": 1}')["code"] == 10


def test_the_end_of_a_job_without_an_image(node: Node) -> None:
    seen = run(node, "epilog", 2)
    assert seen["code"] == 0
    assert set(seen["loaded"]) <= STANDARD | OURS


def test_what_is_not_warm_is_left_to_the_long_way(node: Node, warm: str) -> None:
    other = f"{warm} container:http://127.0.0.1:1/other.sif"
    seen = run(node, "prolog", 2, other)
    assert seen["code"] == 10
    assert set(seen["loaded"]) <= STANDARD | OURS


def test_a_job_that_waits(node: Node, web: WebServer, tmp_path: Path) -> None:
    """It loads hardly more than a hit, and no package."""
    url = web.put("/slow.sif", images.make_sif(tmp_path / "x", {"x": b"x"}).read_bytes())
    comment = f"container:{url}"
    with web.hold("/slow.sif") as hold, node.start_prolog(1, comment) as first:
        hold.wait_reached()
        with ThreadPoolExecutor() as pool:
            second = pool.submit(run, node, "prolog", 2, comment, "waits")
            wait_for_log(node, f"job 2 waits for {url}")
            hold.release()
        finish(first)
    seen = second.result()
    assert seen["code"] == 0
    assert set(seen["loaded"]) <= STANDARD | OURS | WAITING
    assert [event for event in seen["done"] if event.startswith(FORBIDDEN_EVENTS)] == []
    assert [image["source"] for image in node.record(2)["images"]] == ["waited"]
    assert web.count() == 1
    assert os.listdir(node.state / "leaders") == []


@pytest.mark.parametrize("hook", [PROLOG, EPILOG])
@pytest.mark.parametrize("comment", ["warm", "none"])
def test_the_whole_hook_opens_no_socket(
    node: Node, warm: str, tmp_path: Path, hook: Path, comment: str
) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("not installed here: strace")
    trace = tmp_path / "trace"
    subprocess.run(
        [strace, "-f", "-qq", "-e", "signal=none", "-e", "trace=network,execve", "-o", trace, hook],
        env=node.environment(2, warm if comment == "warm" else None),
        check=True,
    )
    if "execve(" not in trace.read_text():
        pytest.skip("strace may not trace here")
    calls = [line.split("(")[0].split()[-1] for line in trace.read_text().splitlines()]
    # The shell, which ends by itself where there is no image, one Python, and nothing else at all.
    has_image = hook == PROLOG and comment == "warm"
    assert calls == ["execve"] * (1 + has_image)
