"""hpcimg doctor: each problem that a node can have, and what it says about it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcimg import acl, health, programs
from hpcimg.cache import filesystem, store
from hpcimg.cache.paths import Layout
from hpcimg.cli.main import main
from hpcimg.config import load as config
from hpcimg.errors import CacheUnusable
from hpcimg.health import Finding
from hpcimg.slurm import health as slurm_health
from hpcimg.slurm.conf import Settings
from tests.integration.checks import refused
from tests.integration.test_node_trouble import AS_ROOT, mounted
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

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
    """The job's files are readable by the user's group instead, and jobs work."""
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
    with pytest.raises(CacheUnusable, match="private images cannot be cached on this node"):
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
    why = "keyring cannot be read" if programs.find(*programs.RUNTIMES) else "neither Apptainer nor"
    assert said.startswith("PROBLEM verify: ")
    assert why in said


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("4.5", "ok      tools: {}\n"),
        (
            "4.4",
            "note    tools: {} is 4.4, which cannot read archives: images in layers are unpacked",
        ),
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
from hpcimg.cache import filesystem
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
    assert line == f"PROBLEM cache: {above}/cache cannot be created: {why}. Make it writable."


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


@pytest.mark.parametrize("package", [*health.PACKAGES, *health.PARTS_OF_PYTHON])
def test_a_package_is_missing(node: Node, package: str, tmp_path: Path) -> None:
    finder = f"""
import sys, importlib.machinery as machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, *rest: (
    None if name == {package!r} else find(name, *rest))
from hpcimg.cache import filesystem
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
    assert "note    failures: 1 jobs failed because of this node within an hour" in said
    assert said.count("the disk") == 1
    assert problems(node) == []


def test_the_class_of_a_failure_is_in_its_event(node: Node, url: str) -> None:
    refused(node, 1, f"container:{url}.no", "NotFound")
    [failure] = node.hpcimg_json("status")["failures"]
    assert failure["class"] == "user"


def test_a_download_that_was_cut_off(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    (node.state / "inflight" / "x.json").write_text('{"process": "a-1-2"}')
    assert "note    leftovers: 1 downloads were interrupted" in node.hpcimg("doctor").stdout


# What Slurm says


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol in PATH, to be written."""
    path = tmp_path / "bin" / "scontrol"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "no-such.conf"))
    return path


def say(scontrol: Path, output: str, code: int = 0) -> list[str]:
    """Let it say this; return what is found of the hooks."""
    scontrol.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    scontrol.chmod(0o755)
    return [finding.result for finding in findings() if finding.check == "hooks"]


def findings() -> list[Finding]:
    """What is found of Slurm for a node whose configuration is empty."""
    return slurm_health.slurm(config.load(os.devnull))


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


TIMERS = """SLURM_VERSION           = 22.05.8
PrologFlags             = {flags}
BatchStartTimeout       = {start} sec
PrologEpilogTimeout     = {prolog}
MessageTimeout          = {message} sec
"""


@pytest.mark.parametrize(
    ("said", "wrong", "noted"),
    [
        ({}, [], []),
        ({"flags": "Alloc,Contain,X11"}, [], []),
        ({"start": 10}, ["BatchStartTimeout is 10 s, and a job is held for up to 9 min"], []),
        ({"prolog": 300}, ["PrologEpilogTimeout is 300 s, and a job is held for up to"], []),
        ({"prolog": 540}, ["PrologEpilogTimeout is 540 s"], []),
        ({"prolog": 65534}, [], ["PrologEpilogTimeout is not set"]),
        ({"flags": "(null)"}, ["PrologFlags has no Alloc"], []),
        ({"flags": "Alloc,NoHold"}, [], ["PrologFlags has nohold"]),
        ({"message": 600}, [], ["MessageTimeout is 600 s"]),
    ],
)
def test_the_timers_of_slurm_are_held_against_the_deadline(
    scontrol: Path, said: dict[str, object], wrong: list[str], noted: list[str]
) -> None:
    right = {"flags": "Alloc", "start": 600, "prolog": 600, "message": 10}
    say(scontrol, TIMERS.format(**{**right, **said}))
    for result, wanted in (("PROBLEM", wrong), ("note", noted)):
        found = [f.what for f in findings() if f.check == "timers" and f.result == result]
        assert len(found) == len(wanted), found
        assert all(what.startswith(start) for what, start in zip(found, wanted, strict=True))


def test_since_25_05_prolog_has_a_timer_of_its_own(scontrol: Path) -> None:
    text = TIMERS.format(flags="Alloc", start=600, prolog=65534, message=10)
    say(scontrol, f"{text}PrologTimeout = 300 sec\n")
    [found] = [f for f in findings() if f.check == "timers" and f.result == "PROBLEM"]
    assert found.what.startswith("PrologTimeout is 300 s")


def test_where_slurmctld_does_not_answer_the_file_is_read(
    scontrol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slurm.conf"
    monkeypatch.setenv("SLURM_CONF", str(path))
    path.write_text(
        "# hooks\nprolog=/opt/hpcimg/prolog/hpcimg-prolog # ours\nInclude more.conf\n"
        "PrologFlags=\\\nAlloc\nBatchStartTimeout=600\nPrologEpilogTimeout=600\n"
    )
    more = "Epilog=/opt/hpcimg/epilog/hpcimg-epilog\ninclude more.conf\n"
    (tmp_path / "more.conf").write_text(more)
    assert say(scontrol, "", code=1) == ["ok", "PROBLEM", "ok"]
    assert {f.result for f in findings() if f.check == "timers"} == {"ok"}


@pytest.mark.parametrize(
    ("version", "mounts", "wanted"),
    [
        ("23.11.4", None, "enroot does not mount /opt/hpcimg/x/hpcimg-task-prolog and /run/hpcimg"),
        ("23.11.4", "/opt/hpcimg", "enroot does not mount /run/hpcimg in containers"),
        ("23.11.4", "/opt/hpcimg /run/hpcimg", ""),
        ("24.11.6", "/opt/hpcimg /run/hpcimg", "Slurm 24.11.6 cannot start TaskProlog"),
        ("25.05.1", "/opt/hpcimg /run/hpcimg", "Slurm 25.05.1 cannot start TaskProlog"),
        ("24.11.10", "/opt/hpcimg /run/hpcimg", ""),
    ],
)
def test_pyxis_without_the_mount_that_task_prolog_needs(
    tmp_path: Path, version: str, mounts: str | None, wanted: str
) -> None:
    (tmp_path / "plugstack.conf").write_text("include plugstack.d/*.conf\n")
    (tmp_path / "plugstack.d").mkdir()
    (tmp_path / "plugstack.d" / "pyxis.conf").write_text("required /usr/lib/spank_pyxis.so x=1\n")
    if mounts:
        (tmp_path / "mounts.d").mkdir()
        lines = [f"{at} {at} none x-create=dir,bind,ro,nofail\n" for at in mounts.split()]
        (tmp_path / "mounts.d" / "hpcimg.fstab").write_text("".join(lines))
    settings = Settings([
        ("SLURM_VERSION", version), ("PlugStackConfig", f"{tmp_path}/plugstack.conf"),
        ("TaskProlog", "/opt/hpcimg/x/hpcimg-task-prolog"),
    ])  # fmt: skip
    [found] = slurm_health.pyxis(settings, "/run/hpcimg", enroot=str(tmp_path))
    assert found.result == ("PROBLEM" if wanted else "ok")
    assert found.what.startswith(wanted or "enroot mounts TaskProlog")
    (tmp_path / "plugstack.d" / "pyxis.conf").unlink()
    assert slurm_health.pyxis(settings, "/run/hpcimg", enroot=str(tmp_path)) == []


def test_pyxis_without_the_socket_of_running_jobs(node: Node) -> None:
    def found() -> list[tuple[str, str]]:
        checks = node.hpcimg_json("doctor")["checks"]
        return [(each["result"], each["what"]) for each in checks if each["check"] == "socket"]

    assert found() == []
    node.configure("[slurm]\npyxis = yes\n")
    assert found() == [("note", f"there is no {node.state}/socket")]
    node.state.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(node.state / "socket"))
        assert [result for result, _ in found()] == ["ok"]


# A network file system, and servers


def test_a_cache_on_a_network_file_system_is_refused(
    node: Node, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "kind", lambda path: "nfs4" if path == str(node.cache) else "")
    monkeypatch.setenv("HPCIMG_CONF", str(node.conf))
    _, found = health.node()
    [problem] = [f for f in found if f.result == health.PROBLEM]
    assert problem.what == f"{node.cache} is on a network file system (nfs4)"
    assert "leases" in problem.why
    assert main(["stage", url]) == 31
    assert not node.cache.exists()


@AS_ROOT
def test_the_file_system_is_that_of_the_last_mount_on_the_path(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    with mounted(place, "ro"):
        assert filesystem.kind(f"{place}/not/there/yet") == "tmpfs"
        assert filesystem.kind(f"{place}c") == filesystem.kind(str(tmp_path))


def test_servers_that_the_site_names(node: Node, web: WebServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{unused.getsockname()[1]}"
        host = web.url().removeprefix("http://")
        node.configure(f"[registry {host}]\ninsecure = yes\nmirrors = {gone}/proxy\n")
        said = node.hpcimg("doctor").stdout
    assert f"ok      reach: {host} can be reached\n" in said
    assert f"PROBLEM reach: {gone} cannot be reached: Connection refused. Check" in said
    assert web.count() == 0
    assert node.hpcimg("doctor", "--node").returncode == 0


# For Nagios


def nagios(node: Node, *arguments: str) -> tuple[int, str]:
    done = node.hpcimg("doctor", "--nagios", *arguments)
    [line] = done.stdout.splitlines()
    assert line.count("|") <= 1
    return done.returncode, line


def test_nagios(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    code, line = nagios(node, "--node")
    assert code == 0
    assert re.fullmatch(
        r"HPCIMG OK - \d checks \| problems=0;;0 notes=\d cache=\d+B;\d+;\d+;0 in_use=\d+B"
        r" free=\d+B;;0: images=1 jobs=1",
        line,
    ), line
    event = {"time": time.time(), "event": "failed", "class": "node", "message": "a|b"}
    with (node.state / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    code, line = nagios(node)
    if code == 1:  # 2 where the Slurm of this host has its say
        assert line.startswith("HPCIMG WARNING - failures: 1 jobs failed because of this node")
    node.cache.chmod(0o777)
    code, line = nagios(node, "--node")
    assert (code, line.startswith("HPCIMG CRITICAL - directories: ")) == (2, True)
    node.configure("[stash]\n")
    assert nagios(node) == (
        2,
        f"HPCIMG CRITICAL - configuration: {node.directory}/conf.d/test.conf: unknown section "
        "[stash] | problems=1;;0 notes=0",
    )


def test_to_nagios_wrong_usage_is_unknown_and_not_critical(node: Node) -> None:
    done = node.hpcimg("doctor", "--nagios", "--no-such")
    assert done.returncode == 3
    assert "unrecognized arguments" in done.stderr
    assert node.hpcimg("doctor", "--no-such").returncode == 2
