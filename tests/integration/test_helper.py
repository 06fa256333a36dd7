"""The helper behind the socket: what jobs ask for while they run, and what others try with it.

Started by systemd's own activation; the jobs are processes in cgroups as Slurm makes them.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hpcimg.slurm import admission
from hpcimg.slurm import helper as helpers
from tests.parts import images
from tests.parts.daemon import PATH, wait_until
from tests.parts.helper import Helper, Jobs, jobs, within
from tests.parts.node import ROOT, Node
from tests.parts.ociimages import make_layer, push_image
from tests.parts.registry import Registry
from tests.parts.webserver import WebServer

MISSING = Helper.missing() or images.missing() or Registry.missing()
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)

USER, OTHER = (pwd.getpwnam(name).pw_uid for name in ("games", "mail"))
# Connects, says what its argument has, and prints what it hears until the end.
CLIENT = """
import contextlib, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
with contextlib.suppress(ConnectionResetError, BrokenPipeError):
    connection.sendall(sys.argv[2].encode())
with contextlib.suppress(ConnectionResetError):
    while more := connection.recv(65536):
        print(more.decode(), end="", flush=True)
"""


class Asked:
    """A node with a helper, and processes that ask it."""

    def __init__(self, node: Node, helper: Helper, cgroups: Jobs) -> None:
        self.node = node
        self.helper = helper
        self.cgroups = cgroups

    def run(
        self, job: int | None, argv: list[str], *, uid: int = USER, below: str = "", **more: str
    ) -> subprocess.Popen[str]:
        """Start a command as a process of a job, of none with None."""
        cgroup = None
        if job is not None:
            cgroup = self.cgroups.directory(job, uid, *([below] if below else []))
        return subprocess.Popen(
            within(cgroup, uid, argv),
            env={"PATH": PATH, **self.node.environment(job or 0), **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stage(self, job: int | None, *uris: str, **options: Any) -> tuple[int, str, str]:
        """Run `hpcimg stage`; return its exit code and what it said."""
        process = self.run(job, [str(ROOT / "bin/hpcimg"), "stage", *uris], **options)
        said, complained = process.communicate(timeout=60)
        return process.returncode, said.strip(), complained.strip()

    def say(self, job: int | None, text: str, **options: Any) -> subprocess.Popen[str]:
        """Start a client that says this."""
        argv = ["/usr/bin/python3", "-c", CLIENT, str(self.helper.socket), text]
        return self.run(job, argv, **options)

    def answer(self, job: int | None, text: str, **options: Any) -> dict[str, Any]:
        """Return what is answered."""
        said, complained = self.say(job, text, **options).communicate(timeout=60)
        assert complained == ""
        answer = json.loads(said)
        assert isinstance(answer, dict)
        return answer

    def turns(self) -> int:
        """Return how many helpers hold a turn."""
        path = Path("/proc/locks").read_text()
        inodes = {str(turn.stat().st_ino) for turn in self.node.state.glob("turns/*")}
        return sum(line.split()[-3].rpartition(":")[2] in inodes for line in path.splitlines())


@pytest.fixture(params=["v1", "v2"])
def cgroups(request: pytest.FixtureRequest) -> Iterator[Jobs]:
    if missing := Jobs.missing(request.param):
        pytest.skip(missing)
    with jobs(request.param) as made:
        yield made


@pytest.fixture
def asked(cgroups: Jobs) -> Iterator[Asked]:
    # Not a directory of pytest's: those are for one account alone.
    directory = Path(tempfile.mkdtemp(prefix="helper-", dir="/tmp"))
    directory.chmod(0o755)
    node = Node(directory, uid=USER)
    with Helper(node.state, node.environment(0)) as helper:
        yield Asked(node, helper, cgroups)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        push_image(registry, "lab/x", "1", [make_layer({"hello": os.urandom(100_000)})])
        yield registry


v2 = pytest.mark.parametrize("cgroups", ["v2"], indirect=True)  # where it does not matter which


def test_a_job_asks_and_its_epilog_releases(asked: Asked, url: str) -> None:
    node = asked.node
    code, path, complained = asked.stage(7, url)
    assert (code, complained.partition(",")[0]) == (0, f"{url}: fetched"), complained
    assert Path(path).read_bytes()
    assert node.leases() == {(Path(path).stem, "7")}
    assert node.record(7)["uid"] == USER
    # Its tasks start as before.
    assert node.task(7) == (0, {}, "")
    assert asked.stage(7, url)[2].startswith(f"{url}: hit")
    assert "helper job 7: INFO" in node.log()
    explained = node.hpcimg("explain", "7").stdout
    assert "were fetched" in explained
    node.epilog(7)
    assert node.leases() == set()
    assert list(node.state.glob("jobs/*")) == []
    assert node.leftovers() == []


@v2
def test_the_capabilities_of_the_unit_are_enough(asked: Asked, registry: Registry) -> None:
    """To fetch as another account and as the user, to convert, to keep what is private."""
    unit = (ROOT / "etc/systemd/hpcimg@.service").read_text()
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.M)
    kept = [f"+{name.removeprefix('CAP_').lower()}" for name in " ".join(lines).split()]
    under = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{','.join(kept)}"]
    asked.helper.__exit__()
    node = asked.node
    node.configure(f"[registry {registry.host}]\ninsecure = yes\n[stage]\nformat = squashfs\n")
    private = node.directory / "private.sif"
    private.write_bytes(images.make_sif(node.directory / "x.sif", {"a": b"b"}).read_bytes())
    private.chmod(0o400)
    os.chown(private, USER, USER)
    with Helper(node.state, node.environment(0), under=under):
        code, said, complained = asked.stage(7, f"docker://{registry.host}/lab/x:1", str(private))
    assert code == 0, complained
    assert Path(said.splitlines()[1]).parent.name == str(USER)
    assert node.leftovers() == []


@v2
def test_what_prolog_gave_the_job_stays(asked: Asked, web: WebServer, url: str, sif: bytes) -> None:
    node = asked.node
    task = node.stage(7, f"container:{url}")
    other = web.put("/other.sif", sif[:-1] + b"x")
    assert asked.stage(7, url, other)[0] == 0
    assert node.task(7) == task
    assert [job for _, job in node.leases()] == ["7", "7"]
    node.epilog(7)
    assert node.leases() == set()


@v2
def test_who_is_in_no_job_is_told_so(asked: Asked, url: str) -> None:
    node = asked.node
    commands = node.directory / "slurm"
    commands.mkdir()
    node.configure(f"[slurm]\nbin = {commands}\n")
    (commands / "scontrol").write_text("#!/bin/sh\necho Failed to locate job >&2\nexit 1\n")
    (commands / "scontrol").chmod(0o755)
    code, said, complained = asked.stage(None, url)
    assert (code, said) == (11, "")
    assert "only a process of a job on this node can have images staged" in complained
    # Where Slurm makes no cgroups, its slurmd knows. Releases differ in how they say it.
    for job, named in (("7", "job id 7"), ("8", "JobId=8"), ("9", "JobId=9.batch")):
        (commands / "scontrol").write_text(f'#!/bin/sh\necho "Slurm {named} ends at Thu Nov 25"\n')
        assert asked.stage(None, url)[0] == 0
        assert job in [job for _, job in node.leases()]
    with socket.socket(socket.AF_UNIX) as connection:  # as root
        connection.connect(str(asked.helper.socket))
        assert b"root can stage images" in connection.recv(65536)


def test_nobody_gets_into_the_job_of_another(asked: Asked, url: str) -> None:
    """Nor with directories of their own below their job's."""
    assert asked.stage(7, url, below="job_8")[0] == 0
    assert {job for _, job in asked.node.leases()} == {"7"}
    cgroup = asked.cgroups.directory(7, USER)
    process = subprocess.run(
        within(cgroup, OTHER, [str(ROOT / "bin/hpcimg"), "stage", url]),
        env={"PATH": PATH, **asked.node.environment(8), "SLURM_JOB_UID": str(USER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 11
    assert "job 7 is another user's" in process.stderr


@v2
def test_the_policy_and_the_rights_are_those_of_prolog(
    asked: Asked, web: WebServer, url: str, sif: bytes
) -> None:
    node = asked.node
    private = node.directory / "private.sif"
    private.write_bytes(sif)
    private.chmod(0o400)
    os.chown(private, USER, USER)
    code, path, _ = asked.stage(7, str(private))
    assert (code, Path(path).parent.name) == (0, str(USER))
    assert asked.stage(8, str(private), uid=OTHER)[0] == 13
    assert asked.stage(7, web.url("/none.sif"))[0] == 12
    assert asked.stage(7, "ubuntu")[2].endswith("oras://ghcr.io/org/image:1.0.")
    node.configure("[policy]\nallow = oras://*\n")
    code, _, complained = asked.stage(7, url)
    assert code == 11
    task = node.stage(9, f"container:{url}")
    assert complained == task.printed
    failed = [
        event for event in node.hpcimg_json("history")["events"] if event["event"] == "failed"
    ]
    assert {event["job"] for event in failed} == {"7", "8", "9"}


@v2
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x" * (helpers.LINE_MAX + 1), "is not a single short line"),
        ("x" * 50_000_000, "is not a single short line"),
        ("stage\n", "is unknown"),
        ("remove /etc/passwd\n", "is unknown"),
        ("\n", "is unknown"),
        ("stage \x1b[31m\xff\n", "is not a reference"),
        ("stage " + "[" * 1000 + "\n", "is not a reference"),
    ],
    ids=lambda value: value[:10],
)
def test_a_request_that_is_none(asked: Asked, text: str, told: str) -> None:
    process = subprocess.run(
        within(
            asked.cgroups.directory(7, USER),
            USER,
            ["/usr/bin/python3", "-c", CLIENT.replace("sys.argv[2]", "sys.stdin.read()"),
             str(asked.helper.socket)],
        ),
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told in json.loads(process.stdout)["error"]["what"]
    assert asked.node.leases() == set()


@v2
def test_one_user_has_a_few_turns(asked: Asked, web: WebServer, url: str) -> None:
    """Clients that connect and send nothing, or send without end, do not block other users."""
    with ExitStack() as stack:
        crowd = []
        for _ in range(3 * helpers.TURNS):
            crowd.append(stack.enter_context(asked.say(7, "stage")))
            stack.callback(crowd[-1].kill)
        wait_until(
            lambda: sum(each.poll() is not None for each in crowd) >= 2 * helpers.TURNS,
            what="those who are sent away",
        )
        for each in crowd:  # the turns of those who were there first may be over by now
            each.kill()
        for _ in range(helpers.TURNS):
            mute = stack.enter_context(asked.say(7, "stage"))
            stack.callback(mute.kill)
        wait_until(lambda: asked.turns() == helpers.TURNS, what="all turns")
        began = time.monotonic()
        assert asked.answer(7, f"stage {url}\n") == {"busy": True}
        assert asked.answer(8, f"stage {url}\n", uid=OTHER)["how"] == "fetched"
        assert time.monotonic() - began < helpers._TO_ASK_S
        # It goes on by itself, and the client of ours waits.
        code, _, complained = asked.stage(7, url)
        assert (code, complained.partition(",")[0]) == (0, f"{url}: hit")
        assert time.monotonic() - began >= 1
    wait_until(lambda: asked.turns() == 0, what="no turn held")


@v2
def test_who_goes_away_leaves_nothing_behind(asked: Asked, web: WebServer, url: str) -> None:
    """The job continues: its image is there, and its Epilog follows."""
    node = asked.node
    with web.hold("/x.sif", after_bytes=1000) as hold:
        client = asked.say(7, f"stage {url}\n")
        hold.wait_reached()
        client.kill()
        client.communicate()
    wait_until(lambda: asked.turns() == 0, what="the helper")
    assert {job for _, job in node.leases()} == {"7"}
    node.epilog(7)
    assert (node.leases(), node.leftovers()) == (set(), [])


@v2
def test_a_job_that_ends_meanwhile_has_no_lease(asked: Asked, web: WebServer, url: str) -> None:
    node = asked.node
    with web.hold("/x.sif", after_bytes=1000) as hold:
        client = asked.say(7, f"stage {url}\n")
        hold.wait_reached()
        client.kill()
        client.communicate()
        node.epilog(7)
    wait_until(lambda: asked.turns() == 0, what="the helper")
    assert "job 7 has ended on this node" in node.log()
    assert (node.leases(), node.leftovers()) == (set(), [])
    assert list(node.state.glob("jobs/*")) == []


@v2
def test_two_who_ask_for_the_same_share_one_download(
    asked: Asked, web: WebServer, url: str
) -> None:
    with web.hold("/x.sif", after_bytes=1000) as hold:
        first = asked.say(7, f"stage {url}\n")
        hold.wait_reached()
        second = asked.say(8, f"stage {url}\n", uid=OTHER)
        wait_until((asked.node.state / "jobs/8").exists, what="the second one")
    answers = [json.loads(client.communicate(timeout=60)[0]) for client in (first, second)]
    assert answers[0]["how"] == "fetched"
    assert answers[1]["how"] in ("waited", "hit")
    assert web.count("GET", "/x.sif") == 1


@v2
def test_one_job_has_so_many_images(asked: Asked, url: str) -> None:
    assert asked.stage(7, url)[0] == 0
    for number in range(admission.IMAGES):
        lease = asked.node.state / "leases" / f"sha256-{number:064x}" / "7"
        lease.parent.mkdir()
        lease.touch()
    code, _, complained = asked.stage(7, url)
    assert code == 11
    assert "which is the limit for one job" in complained


@v2
def test_a_job_that_goes_on_asking_for_nothing_fills_no_tmpfs(asked: Asked) -> None:
    node = asked.node
    assert asked.stage(7, "ubuntu")[0] == 10
    line = (node.state / "events.jsonl").read_text()
    (node.state / "events.jsonl").write_text(line * (1 + (1 << 20) // len(line)))
    assert asked.stage(7, "ubuntu")[0] == 10
    assert not (node.state / "events.jsonl").exists()
    assert node.hpcimg_json("status")["counts"]["failed"] > 1000


@pytest.fixture
def importer(asked: Asked) -> Callable[[int, str], subprocess.CompletedProcess[str]]:
    """Call the importer as pyxis does."""
    temporary = asked.node.directory / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)

    def get(job: int, uri: str) -> subprocess.CompletedProcess[str]:
        fields = {"SLURM_STEP_ID": "0", "TMPDIR": str(temporary)}
        argv = ["env", "--unset=PATH", str(ROOT / "bin/hpcimg-pyxis-importer"), "get", uri]
        process = asked.run(job, argv, **fields)
        said, complained = process.communicate(timeout=60)
        return subprocess.CompletedProcess(argv, process.returncode, said, complained)

    return get


@v2
def test_the_importer_asks_for_what_prolog_did_not_see(
    asked: Asked,
    registry: Registry,
    importer: Callable[[int, str], subprocess.CompletedProcess[str]],
) -> None:
    node = asked.node
    uri = f"docker://{registry.host}#lab/x:1"
    insecure = f"[registry {registry.host}]\ninsecure = yes\n[stage]\nformat = sif\n"
    node.configure(f"{insecure}[slurm]\npyxis = yes\n")
    done = importer(7, uri)
    path = Path(done.stdout.strip())
    assert (done.returncode, done.stderr, path.suffix) == (0, "", ".squashfs")
    assert node.leases() == {(path.stem, "7")}
    none = importer(7, f"docker://{registry.host}#lab/none:1")
    assert (none.returncode, none.stdout) == (1, "")
    assert none.stderr.startswith("hpcimg: there is nothing at docker://")
    # Once it is there no Python is started for it, and nobody is asked.
    asked.helper.__exit__()
    assert importer(7, uri).stdout.strip() == str(path)
    asked.helper.__enter__()
    node.configure(insecure)
    done = importer(8, uri)
    assert "enroot: not found" in done.stderr
