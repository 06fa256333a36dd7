"""The command line, as people and programs use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcimg import __version__
from tests.integration.checks import finish, let_pass, refused, staged
from tests.integration.conftest import MakeSif, Start
from tests.parts.node import ROOT, Node
from tests.parts.webfaults import Status
from tests.parts.webserver import WebServer

MIB = 1 << 20
COMMANDS = (
    "check", "stage", "prefetch", "path", "status", "explain", "history", "ls", "pin", "unpin",
    "rm", "gc", "verify", "doctor", "metrics", "config",
)  # fmt: skip


@pytest.fixture
def sif(make_sif: MakeSif) -> bytes:
    return make_sif(size_bytes=MIB)


# stage and path


def test_stage(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    done = node.hpcimg("stage", url)
    assert done.returncode == 0
    path = Path(done.stdout.strip())
    assert path.read_bytes() == sif
    assert f"{url}: fetched, 1.0 MiB in " in done.stderr
    # No job is leased it; a job then finds it warm.
    assert node.leases() == set()
    staged(node, 1, f"container:{url}", sif, how="hit")
    [image] = node.hpcimg_json("stage", url)["images"]
    assert image["path"] == str(path)
    assert (image["uri"], image["bytes"], image["how"]) == (url, len(sif), "hit")
    assert image["key"] == path.stem
    assert web.count() == 1


def test_path(node: Node, web: WebServer, url: str) -> None:
    node.configure(f"[alias]\nx = {url}\n")
    missing = node.hpcimg("path", "x")
    assert (missing.returncode, missing.stdout) == (12, "")
    assert f"{url} is not in the cache of this node" in missing.stderr
    assert not node.cache.exists()
    staged_path = node.hpcimg("stage", "x").stdout
    web.remove("/x.sif")
    let_pass(node, 86400)
    done = node.hpcimg("path", url)
    assert (done.returncode, done.stdout, done.stderr) == (0, staged_path, "")
    fields = node.hpcimg_json("path", "x")
    assert (fields["path"], fields["uri"]) == (staged_path.strip(), url)
    assert web.count() == 1


@pytest.mark.parametrize(
    ("settings", "reference", "code", "error"),
    [
        ("", "ubuntu:22.04", 10, "BadReference"),
        ("[policy]\ndeny = *\n", "/data/x.sif", 11, "NotAllowed"),
        ("", "/no/such/x.sif", 12, "NotFound"),
        ("", "/dev/null", 14, "NotAnImage"),
        ("[alias]\nbusy = {web}/x.sif\n", "busy", 20, "Unreachable"),
        ("[cache]\nmax_sice = 1G\n", "/data/x.sif", 31, "ConfigError"),
    ],
)
def test_exit_codes(
    node: Node, web: WebServer, settings: str, reference: str, code: int, error: str
) -> None:
    web.script("/x.sif", [Status(503, retry_after="600")])
    node.configure(settings.format(web=web.url()))
    done = node.hpcimg("stage", reference, "--json")
    assert done.returncode == code
    fields = json.loads(done.stdout)
    assert (fields["version"], fields["error"], fields["exit_code"]) == (1, error, code)
    assert fields["class"] == {1: "user", 2: "transient", 3: "node"}[code // 10]
    assert done.stderr.splitlines()[-1].startswith("hpcimg: ")
    assert "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_used(node: Node) -> None:
    node.cache.touch()
    done = node.hpcimg("stage", "/data/x.sif")
    assert done.returncode == 30
    assert str(node.cache) in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["stage"],
        ["prefetch"],
        ["prefetch", "--queue", "x"],
        ["path"],
        ["no-such"],
        ["ls", "--no-such"],
    ],
)
def test_wrong_usage(node: Node, arguments: list[str]) -> None:
    done = node.hpcimg(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: hpcimg" in done.stderr


# status


def test_status_of_a_node_that_did_nothing_yet(node: Node) -> None:
    done = node.hpcimg("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing yet" in done.stdout
    assert not node.cache.exists()


def test_status_while_an_image_is_on_its_way(
    start: Start, node: Node, web: WebServer, make_sif: MakeSif
) -> None:
    sif = make_sif(size_bytes=2 * MIB)
    url = web.put("/x.sif", sif)
    with web.hold("/x.sif", after_bytes=MIB) as hold:
        prolog = start(node, 7, f"container:{url}")
        hold.wait_reached()
        fields = node.hpcimg_json("status")
        [work] = fields["staging"]
        assert (work["uri"], work["job"]) == (url, "7")
        assert work["phase"] in ("asking", "fetching")
        assert 0 <= work["bytes"] <= MIB
        assert work["total"] in (None, len(sif))
        assert fields["cache"]["images"] == 0
        text = node.hpcimg("status").stdout
        assert "In progress" in text
        assert re.search(rf"\b7\b +{url}$", text, re.MULTILINE)
        hold.release()
        finish(prolog)
    assert node.hpcimg_json("status")["staging"] == []


def test_status_tells_of_every_failure(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    missing = web.url("/y.sif")
    refused(node, 1, "container:" + "x" * 65 + f"={url}", "BadReference")
    refused(node, 2, f"container:{url} container:gopher://h/x", "BadReference")
    refused(node, 3, f"container:{url} container:{missing}", "NotFound")
    assert node.hpcimg("stage", missing).returncode != 0
    fields = [json.loads(line) for line in (node.state / "events.jsonl").read_text().splitlines()]
    failed = [event for event in fields if event["event"] == "failed"]
    assert [(event["job"], event["uri"], event["class"]) for event in failed] == [
        ("1", "", "user"), ("2", "", "user"), ("3", missing, "user"), ("", missing, "user"),
    ]  # fmt: skip
    assert all(event["took_s"] >= 0 and event["message"] for event in failed)


def test_status_counts(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    staged(node, 1, f"container:{url}", sif)
    staged(node, 10, f"container:{url}", sif)
    staged(node, 2, f"container:{url}", sif)
    refused(node, 3, f"container:{web.url('/y.sif')}", "NotFound")
    let_pass(node, 86400)
    staged(node, 4, f"container:{url}", sif, how="unchanged")
    fields = node.hpcimg_json("status")
    assert fields["counts"] == {"fetched": 1, "hit": 2, "failed": 1, "unchanged": 1}
    cache = fields["cache"]
    assert (cache["path"], cache["images"], cache["bytes"]) == (str(node.cache), 1, len(sif))
    assert (cache["in_use_images"], cache["in_use_bytes"]) == (1, len(sif))
    key = node.images()[0].stem
    assert fields["jobs"] == {job: [key] for job in ("1", "2", "4", "10")}
    [failure] = fields["failures"]
    assert failure["job"] == "3"
    assert "there is nothing at" in failure["message"]
    assert fields["problems"] == []
    text = node.hpcimg("status").stdout
    for words in ("images: 1", "1 (1.0 MiB) of them in use", "1 fetched", "2 hits", "job 3: "):
        assert words in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("max_size = 1000", "more than its max_size"),
        ("max_size = 1G\nmin_free = 100%", "should be"),
    ],
)
def test_status_finds_problems(node: Node, url: str, sif: bytes, settings: str, words: str) -> None:
    staged(node, 1, f"container:{url}", sif)
    (node.directory / "conf.d" / "z.conf").write_text(f"[cache]\n{settings}\n")
    done = node.hpcimg("status")
    assert done.returncode == 1
    assert "PROBLEM: " in done.stdout
    assert words in done.stdout
    [problem] = node.hpcimg_json("status")["problems"]
    assert words in problem


def test_status_finds_directories_that_others_may_change(node: Node, url: str, sif: bytes) -> None:
    staged(node, 1, f"container:{url}", sif)
    node.state.chmod(0o777)
    done = node.hpcimg("status")
    assert (done.returncode, "state is not safe" in done.stdout) == (1, True)


def test_a_hostile_message_does_not_reach_the_terminal(node: Node) -> None:
    node.state.mkdir()
    event = {"time": 1, "event": "failed", "job": "\x1b[2J", "message": "\x1b]0;x\x07\nPROBLEM: y"}
    (node.state / "events.jsonl").write_text(json.dumps(event) + "\n")
    done = node.hpcimg("status")
    assert done.returncode == 0
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "\nPROBLEM" not in done.stdout


# ls


def test_ls(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    made = {name: make_sif() for name in "ab"}
    for job, (name, data) in enumerate(made.items(), start=1):
        staged(node, job, f"container:{web.put(f'/{name}.sif', data)}", data)
        let_pass(node, 3600)
    node.epilog(2)
    listed = node.hpcimg_json("ls")["images"]
    assert [image["uris"] for image in listed] == [[web.url("/b.sif")], [web.url("/a.sif")]]
    assert [image["jobs"] for image in listed] == [[], ["1"]]
    assert Path(listed[0]["path"]).read_bytes() == made["b"]
    assert (listed[0]["size_bytes"], listed[0]["owner"]) == (len(made["b"]), None)
    heads, first, second = node.hpcimg("ls").stdout.splitlines()
    assert heads.split() == ["SHA256", "SIZE", "FORMAT", "OWNER", "USED", "JOBS", "FROM"]
    assert first.startswith(listed[0]["sha256"][:12])
    assert "1 h" in first
    assert "2 h" in second
    assert second.endswith(web.url("/a.sif"))


def test_ls_of_nothing(node: Node) -> None:
    assert node.hpcimg("ls").stdout.splitlines()[1:] == []
    assert node.hpcimg_json("ls")["images"] == []


def as_user(uid: int, node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as another user.

    All is loaded before, since that user may not read this Python.
    """
    program = (
        "import gettext, locale, os, shutil, sys, traceback; from hpcimg.cli import main;"
        "main._parser();"
        "uid = int(sys.argv.pop(1));"
        "os.setgroups([]); os.setgid(uid); os.setuid(uid); sys.exit(main.main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, str(uid), *arguments],
        env={**os.environ, "HPCIMG_CONF": str(node.conf), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_users_see_what_is_shared_and_their_own_path(
    open_directory: Path, web: WebServer, url: str, make_sif: MakeSif
) -> None:
    node = Node(open_directory, uid=1)
    shared, private = make_sif(), make_sif()
    path = open_directory / "private.sif"
    path.write_bytes(private)
    os.chown(path, 1, 1)
    path.chmod(0o400)
    comment = f"container:{web.put('/shared.sif', shared)} container:{path}"
    staged(node, 1, comment, shared, private)
    for user in (1, 2):
        [image] = json.loads(as_user(user, node, "ls", "--json").stdout)["images"]
        assert image["uris"] == [web.url("/shared.sif")]
        status = as_user(user, node, "status")
        assert (status.returncode, status.stderr) == (0, "")
    assert len(node.hpcimg_json("ls")["images"]) == 2
    # They change nothing.
    for arguments in (["gc"], ["stage", url]):
        done = as_user(2, node, *arguments)
        assert done.returncode == 30
        assert "Traceback" not in done.stderr


# config


def test_config(node: Node) -> None:
    other = node.directory / "conf.d" / "site.conf"
    other.write_text("[stage]\ntag_ttl = 2h\n[alias]\nbase = oras://h/base:1\n")
    listed = {(s["section"], s["name"]): s for s in node.hpcimg_json("config")["settings"]}
    assert listed["stage", "tag_ttl"]["value"] == "2h"
    assert listed["stage", "tag_ttl"]["origin"] == str(other)
    assert listed["cache", "path"]["origin"] == str(node.conf)
    assert listed["stage", "deadline"]["origin"] == "default"
    assert listed["alias", "base"]["value"] == "oras://h/base:1"
    text = node.hpcimg("config").stdout
    assert re.search(rf"^stage +tag_ttl +2h +{other}$", text, re.MULTILINE)
    assert re.search(r"^stage +deadline +540s +default$", text, re.MULTILINE)
    about = node.hpcimg("config", "--about").stdout
    assert "how long a tag is trusted" in about
    assert "how long a tag is trusted" not in text


def test_config_that_is_wrong(node: Node) -> None:
    node.configure("[stage]\ndeadline = soon\n")
    done = node.hpcimg("config")
    assert done.returncode == 31
    assert "test.conf: [stage] deadline: 'soon' is not a time; write 90s" in done.stderr
    node.conf.unlink()
    assert "HPCIMG_CONF" in node.hpcimg("config").stderr


# Help, and the end of a pipe


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(node: Node, command: str) -> None:
    done = node.hpcimg(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: hpcimg {command}" in done.stdout
    assert "--json" in done.stdout


def test_help(node: Node) -> None:
    done = node.hpcimg("--help")
    assert done.returncode == 0
    assert all(re.search(rf"^ +{command} ", done.stdout, re.MULTILINE) for command in COMMANDS)
    assert "exit codes:" in done.stdout
    assert "HPCIMG_CONF" in done.stdout
    assert node.hpcimg("--version").stdout == f"hpcimg {__version__}\n"


def test_whoever_read_the_output_went_away(node: Node) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = "import sys; from hpcimg.cli.main import main; sys.exit(main())"
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-c", program, "config", "--json"],
            env={**os.environ, "HPCIMG_CONF": str(node.conf), "PYTHONPATH": str(ROOT)},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 141
    assert done.stderr == ""
