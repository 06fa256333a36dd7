"""hpcimg doctor: each thing that can be wrong with a node, and what it says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcimg import acl, health, programs
from hpcimg.cache import store
from hpcimg.cache.paths import Layout
from hpcimg.cli.main import main
from hpcimg.convert import RUNTIMES
from hpcimg.errors import CacheUnusable
from hpcimg.slurm import health as slurm_health
from tests.integration.checks import refused
from tests.integration.test_node_trouble import AS_ROOT, mounted
from tests.parts.node import ROOT, Node

HOOKS = "Prolog  = {}\nEpilog  = {}\nTaskProlog[0]           = {}\nPrologSlurmctld  = (null)\n"


def problems(node: Node) -> list[str]:
    """Return the lines of `hpcimg doctor --node`; its exit code says whether there are any."""
    done = node.hpcimg("doctor", "--node")
    assert done.stderr == ""
    assert done.returncode == (1 if done.stdout else 0)
    return done.stdout.splitlines()


def test_a_new_node_is_well_and_stays_untouched(node: Node) -> None:
    assert problems(node) == []
    assert not node.cache.exists()
    assert not node.state.exists()


def test_a_node_at_work_is_well(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    assert problems(node) == []
    assert node.leftovers() == []
    done = node.hpcimg("doctor")
    assert "PROBLEM" not in done.stdout.replace("PROBLEM leases", "")
    for check in ("configuration", "cache", "state", "space", "packages", "clock", "imports"):
        assert f"ok      {check}: " in done.stdout


@AS_ROOT
def test_a_state_directory_without_access_control_lists(open_directory: Path, sif: bytes) -> None:
    """The job's files are its user's group's to read then; jobs go on."""
    image = open_directory / "x.sif"
    image.write_bytes(sif)
    node = Node(open_directory, uid=1)
    node.state.mkdir()
    with mounted(node.state, "mode=0755", kind="ramfs"):
        assert node.stage(1, f"container:{image}").image.read_bytes() == sif
        seen = (node.state / "jobs/1/task").stat()
        assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o777) == (0, 1, 0o440)
        assert problems(node) == []
        said = f"note    private: the file system of {node.state} has no POSIX access control lists"
        assert said in node.hpcimg("doctor").stdout


@AS_ROOT
def test_a_cache_without_access_control_lists(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.cache.mkdir()
    layout = Layout(str(node.cache), str(node.state))
    monkeypatch.setattr(acl, "supported", lambda _: False)
    [found] = health.private(layout)
    assert found.result == health.PROBLEM
    assert found.what == f"the file system of {node.cache} has no POSIX access control lists"
    with pytest.raises(CacheUnusable, match="only one user may read cannot be kept on this node"):
        store.check_private(layout, 0)


@AS_ROOT
def test_what_verifies_images(node: Node, open_directory: Path) -> None:
    program = open_directory / "trusted"
    program.write_text("#!/bin/sh\n")
    node.configure(f"[policy]\nverify = {program}\n")
    for mode in (0o700, 0o644):  # it is not root that runs it
        program.chmod(mode)
        [said] = problems(node)
        assert said.startswith(f"PROBLEM verify: {program} cannot say whether an image is verified")
    program.chmod(0o755)
    assert problems(node) == []
    assert f"ok      verify: images can be verified by {program}" in node.hpcimg("doctor").stdout
    node.configure("[policy]\nverify = sif\nkeyring = /no/such/keyring\n")
    [said] = problems(node)
    why = "keyring cannot be read" if programs.find(*RUNTIMES) else "neither Apptainer nor"
    assert said.startswith("PROBLEM verify: ")
    assert why in said


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("4.5", "ok      tools: {}\n"),
        ("4.4", "note    tools: {} is 4.4, which reads no archives: images in layers are unpacked"),
        (
            "4.2",
            "note    tools: images cannot be converted on this node: {} is 4.2, which is too old",
        ),
    ],
)
def test_which_mksquashfs_there_is(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    node: Node,
    version: str,
    said: str,
) -> None:
    tool = node.directory / "mksquashfs"
    tool.write_text(f"#!/bin/sh\necho mksquashfs version {version}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(programs, "PATH", str(node.directory))
    monkeypatch.setenv("HPCIMG_CONF", str(node.conf))
    main(["doctor"])
    printed = capsys.readouterr().out
    assert said.format(tool) in printed
    assert "note    tools: there is no zstd\n" in printed
    assert "note    tools: there is no apptainer or singularity\n" in printed


def test_the_short_form_asks_nobody(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    program = """
import sys
done = []
sys.addaudithook(lambda name, _: done.append(name))
from hpcimg.cli.main import main
code = main(["doctor", "--node"])
print([name for name in done if name.startswith(("socket.", "subprocess.", "os.fork", "os.exec",
    "os.posix_spawn", "os.system"))])
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HPCIMG_CONF": str(node.conf), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_json(node: Node) -> None:
    node.configure("[stash]\n")
    fields = node.hpcimg_json("doctor", "--node")
    assert fields["problems"] == 1
    [check] = fields["checks"]
    assert (check["check"], check["result"]) == ("configuration", "PROBLEM")
    assert "unknown section [stash]" in check["what"]
    assert "[cache]" in check["do"]


def test_a_configuration_that_is_missing(node: Node) -> None:
    node.conf.unlink()
    [line] = problems(node)
    assert line.startswith(f"PROBLEM configuration: {node.conf} cannot be read")


@pytest.mark.parametrize("name", ["cache", "state", "cache/locks", "state/tmp"])
def test_a_file_in_the_place_of_a_directory(node: Node, url: str, name: str) -> None:
    node.prolog(1, f"container:{url}")
    path = node.directory / name
    path.rename(node.directory / "kept")
    path.touch()
    [line] = problems(node)
    assert line == f"PROBLEM directories: {path} is not a directory. Move it out of the way."


def test_a_cache_that_others_may_write(node: Node) -> None:
    node.cache.mkdir()
    node.cache.chmod(0o777)
    [line] = problems(node)
    assert line.startswith(f"PROBLEM directories: {node.cache} is not safe: ")


@AS_ROOT
def test_a_cache_that_is_mounted_read_only(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    with mounted(node.cache, "ro"):
        [line] = problems(node)
    assert line.startswith(f"PROBLEM directories: {node.cache}")
    with mounted(node.state, "ro"):
        [line] = problems(node)
    assert line.startswith(f"PROBLEM directories: {node.state}")


@AS_ROOT
def test_a_place_where_no_cache_can_be_made(node: Node) -> None:
    above = node.directory / "disk"
    above.mkdir()
    node.configure(f"[cache]\npath = {above}/cache\n")
    with mounted(above, "ro"):
        [line] = problems(node)
    why = f"{above} cannot be written"
    assert line == f"PROBLEM cache: {above}/cache cannot be made: {why}. Make it writable."


@AS_ROOT
def test_a_new_cache_directory_on_a_full_disk(node: Node) -> None:
    node.cache.mkdir()
    with mounted(node.cache, "mode=0755"):
        with pytest.raises(OSError, match="No space"):
            (node.cache / "filler").write_bytes(bytes(2 << 20))
        [line] = problems(node)
    assert line.startswith(f"PROBLEM cache: {node.cache} cannot be written: No space left")


@AS_ROOT
def test_a_full_disk(node: Node) -> None:
    node.cache.mkdir()
    with mounted(node.cache, "mode=0755"):
        node.cache.joinpath("tmp").mkdir(mode=0o700)
        with pytest.raises(OSError, match="No space"):
            node.cache.joinpath("tmp", "filler").write_bytes(bytes(2 << 20))
        [line] = problems(node)
    assert line.startswith(f"PROBLEM cache: {node.cache} cannot be written: No space left")


def test_a_disk_that_forgets(node: Node, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node.prolog(1, f"container:{url}")
    monkeypatch.setattr(os, "pread", lambda *_: b"x")
    monkeypatch.setenv("HPCIMG_CONF", str(node.conf))
    _, findings = health.node()
    assert [f.check for f in findings if f.result == health.PROBLEM] == ["cache", "state"]
    assert node.leftovers() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("[cache]\nmax_size = 1000\n", "more than its max_size"),
        ("[cache]\nmin_free = 100%\n", "should be"),
    ],
)
def test_no_room(node: Node, url: str, settings: str, words: str) -> None:
    node.prolog(1, f"container:{url}")
    node.configure(settings)
    [line] = problems(node)
    assert line.startswith("PROBLEM space: ")
    assert words in line
    assert "hpcimg gc" in line


@AS_ROOT
def test_no_account_to_fetch_as(node: Node) -> None:
    node.configure("[stage]\naccount = no-such-account\n")
    [line] = problems(node)
    assert line.startswith("PROBLEM account: [stage] account: there is no account no-such-account")


@pytest.mark.parametrize("package", health.PACKAGES)
def test_a_package_is_missing(node: Node, package: str, tmp_path: Path) -> None:
    finder = f"""
import sys, importlib.machinery as machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name == {package!r} else find(name, *rest))
from hpcimg.cli.main import main
sys.exit(main(["doctor", "--node"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", finder],
        env={**os.environ, "HPCIMG_CONF": str(node.conf), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert package in done.stdout


def test_a_clock_that_is_behind(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCIMG_CONF", str(node.conf))
    monkeypatch.setattr(time, "time", lambda: 1e9)
    _, findings = health.node()
    [problem] = [f for f in findings if f.result == health.PROBLEM]
    assert problem.check == "clock"
    assert problem.do == "Set the clock."


def test_failures_by_the_nodes_fault_are_a_note(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    event = {"time": time.time(), "event": "failed", "class": "node", "message": "the disk"}
    with (node.state / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    said = node.hpcimg("doctor").stdout
    assert "note    failures: 1 jobs failed by this node's fault within an hour" in said
    assert said.count("the disk") == 1
    assert problems(node) == []


def test_the_class_of_a_failure_is_in_its_event(node: Node, url: str) -> None:
    refused(node, 1, f"container:{url}.no", "NotFound")
    [failure] = node.hpcimg_json("status")["failures"]
    assert failure["class"] == "user"


def test_a_download_that_was_cut_off(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    (node.state / "inflight" / "x.json").write_text('{"process": "a-1-2"}')
    assert "note    leftovers: 1 downloads were cut off" in node.hpcimg("doctor").stdout


# What Slurm says


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol in PATH, to be written."""
    path = tmp_path / "bin" / "scontrol"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return path


def say(scontrol: Path, output: str, code: int = 0) -> list[str]:
    """Let it say this; return what is found of the hooks."""
    scontrol.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    scontrol.chmod(0o755)
    return [finding.result for finding in slurm_health.hooks()]


def test_hooks(scontrol: Path, tmp_path: Path) -> None:
    places = ("prolog/hpcimg-prolog", "epilog/hpcimg-epilog", "prolog/hpcimg-task-prolog")
    ours = [f"/usr/lib/hpcimg/{place}" for place in places]
    assert say(scontrol, HOOKS.format(*ours)) == ["ok"] * 3
    assert say(scontrol, HOOKS.format("(null)", *ours[1:])) == ["PROBLEM", "ok", "ok"]
    assert say(scontrol, HOOKS.format(*ours[:2], ours[0])) == ["ok", "PROBLEM", "ok"]
    wrapper = tmp_path / "prolog.d" / "wrapper"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\nexec {ours[0]}\n")
    assert say(scontrol, HOOKS.format(wrapper, *ours[1:])) == ["ok"] * 3
    assert say(scontrol, HOOKS.format(f"{wrapper.parent}/*", *ours[1:])) == ["ok"] * 3
    wrapper.write_text("#!/bin/sh\n")
    assert say(scontrol, HOOKS.format(wrapper, *ours[1:])) == ["PROBLEM", "ok", "ok"]


def test_a_slurm_that_does_not_answer_is_a_note(scontrol: Path) -> None:
    assert say(scontrol, "", code=1) == ["note"]
