"""The commands of operators: pin, rm, verify, history, explain, and watching a node."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcimg.cache import scrub
from hpcimg.units import format_size
from tests.integration.checks import finish, refused, staged
from tests.integration.conftest import MakeSif, Start
from tests.parts.daemon import TIMEOUT_S, wait_until
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

MIB = 1 << 20


def lasting(node: Node, url: str) -> str:
    """Stage an image for no job; return its key."""
    assert node.hpcimg("stage", url).returncode == 0
    return Path(node.hpcimg("path", url).stdout.strip()).stem


# rm


@pytest.mark.parametrize("by", ["uri", "key", "digest"])
def test_rm(node: Node, web: WebServer, url: str, sif: bytes, by: str) -> None:
    key = lasting(node, url)
    [listed] = node.hpcimg_json("ls")["images"]
    named = {"uri": url, "key": key, "digest": listed["sha256"][:12]}[by]
    fields = node.hpcimg_json("rm", named)
    assert fields["removed"] == [{"key": key, "bytes": len(sif), "uris": [url]}]
    assert node.images() == []
    assert node.hpcimg("rm", named).returncode == 12
    staged(node, 1, f"container:{url}", sif, how="fetched")
    [event] = node.hpcimg_json("history", "--event", "evict")["events"]
    assert (event["key"], event["reason"]) == (key, "rm")


def test_what_a_job_uses_is_not_removed(node: Node, url: str, sif: bytes) -> None:
    staged(node, 7, f"container:{url}", sif)
    done = node.hpcimg("rm", url)
    assert done.returncode == 24
    assert "it is in use by job 7" in done.stderr
    node.epilog(7)
    assert node.hpcimg("rm", url).returncode == 0


def test_rm_of_what_is_meant_by_nothing(node: Node) -> None:
    assert node.hpcimg("rm", "docker://registry.example.org/x:1").returncode == 12
    assert node.hpcimg("rm", "sha256-12").returncode == 12
    assert node.hpcimg("rm", "../../etc/passwd").returncode == 10


# pin


def test_a_pinned_image_stays_until_it_is_unpinned(
    node: Node, url: str, sif: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = lasting(node, url)
    monkeypatch.setenv("SUDO_UID", "1")
    [pin] = node.hpcimg_json("pin", url)["pinned"]
    assert (pin["key"], pin["by"]) == (key, "daemon")
    assert abs(pin["time"] - time.time()) < 100
    monkeypatch.setenv("SUDO_UID", "0")
    assert node.hpcimg_json("pin", key)["pinned"] == [pin]  # who came first
    node.reboot()
    (node.directory / "conf.d" / "z.conf").write_text("[cache]\nmax_size = 10K\nmin_age = 0\n")
    done = node.hpcimg("gc")
    assert f"0 eligible, {format_size(len(sif))} pinned" in done.stdout
    assert node.images() != []
    assert node.hpcimg("rm", url).returncode == 24
    assert "daemon pinned it" in node.hpcimg("rm", url).stderr
    assert node.hpcimg_json("ls")["images"][0]["pinned"] == {"by": "daemon", "time": pin["time"]}
    assert "by daemon" in node.hpcimg("ls").stdout
    assert f"1 ({format_size(len(sif))}) pinned" in node.hpcimg("status").stdout
    assert node.hpcimg_json("unpin", url)["unpinned"] == [key]
    assert node.hpcimg("unpin", url).returncode == 12
    assert key in node.hpcimg_json("gc")["evicted"]


def test_a_job_that_needs_room_does_not_get_that_of_a_pinned_image(
    node: Node, web: WebServer, make_sif: MakeSif
) -> None:
    first, second = (web.put(f"/{n}.sif", make_sif(size_bytes=MIB)) for n in "ab")
    lasting(node, first)
    assert node.hpcimg("pin", first).returncode == 0
    (node.directory / "conf.d" / "z.conf").write_text("[cache]\nmax_size = 1.5M\n")
    refused(node, 1, f"container:{second}", "NoRoom", "1.0 MiB pinned")
    assert node.hpcimg("unpin", first).returncode == 0
    node.prolog(2, f"container:{second}")
    assert node.task(2).code == 0


def test_what_is_not_there_cannot_be_pinned(node: Node, url: str) -> None:
    assert node.hpcimg("pin", url).returncode == 12
    key = lasting(node, url)
    assert node.hpcimg("pin", key).returncode == 0
    node.images()[0].unlink()
    assert node.hpcimg("unpin", key).returncode == 0


# verify


def test_verify_of_what_is_whole(node: Node, url: str, sif: bytes) -> None:
    lasting(node, url)
    done = node.hpcimg("verify")
    assert done.returncode == 0
    assert done.stdout.startswith(f"1 files, {format_size(len(sif))} read in ")
    assert done.stdout.endswith(": all are intact\n")
    assert " ago: 1 files, none damaged" in node.hpcimg("status").stdout
    node.reboot()
    assert node.hpcimg_json("status")["verified"]["files"] == 1


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def give_away(path: Path) -> None:
    """Give a file to a user, who could then change it: it must not be handed out."""
    os.chown(path, 1, 1)


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")


@pytest.mark.parametrize("damage", [flip, cut, link, pytest.param(give_away, marks=AS_ROOT)])
def test_what_is_damaged_is_told_and_with_repair_goes(
    node: Node, url: str, sif: bytes, damage: Callable[[Path], None]
) -> None:
    key = lasting(node, url)
    assert node.hpcimg("pin", key).returncode == 0
    [path] = node.images()
    damage(path)
    done = node.hpcimg("verify")
    assert done.returncode == 1
    assert f"hpcimg: {path} is damaged: " in done.stderr
    assert done.stdout.endswith("1 damaged, 0 of them removed\n")
    assert node.images() == [path]
    fields = node.hpcimg_json("verify", "--repair")
    [told] = fields["damaged"]
    assert (told["key"], told["removed"], told["jobs"]) == (key, True, [])
    assert node.images() == []
    staged(node, 1, f"container:{url}", sif, how="fetched")
    assert node.hpcimg("verify").returncode == 0


def test_what_a_job_uses_is_told_and_left(node: Node, url: str, sif: bytes) -> None:
    staged(node, 7, f"container:{url}", sif)
    [path] = node.images()
    flip(path)
    done = node.hpcimg("verify", "--repair", url)
    assert done.returncode == 1
    assert "it was left, job 7 uses it" in done.stderr
    assert node.images() == [path]
    assert node.hpcimg_json("status")["verified"] is None  # not all files were looked at


def test_a_file_that_was_replaced_meanwhile_is_not_removed(
    node: Node, url: str, sif: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasting(node, url)
    [path] = node.images()
    flip(path)
    from hpcimg.cache import store
    from hpcimg.cache.paths import Layout

    layout = Layout(str(node.cache), str(node.state))
    remove = scrub._remove

    def replaced(*arguments: object) -> bool:
        path.unlink()
        path.write_bytes(sif)
        return remove(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(scrub, "_remove", replaced)
    result = scrub.scrub(
        layout, list(store.entries(layout)), rate_bytes=0, repair=True,
        progress=lambda _: None, found=lambda _: None,
    )  # fmt: skip
    assert [damage.removed for damage in result.damaged] == [False]
    assert path.read_bytes() == sif


def test_verify_keeps_to_its_rate(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    lasting(node, web.put("/x.sif", make_sif(size_bytes=3 * MIB)))
    assert node.hpcimg_json("verify", "--rate", "2M")["took_s"] > 1.0
    assert node.hpcimg("verify", "--rate", "fast").returncode == 2


# history and explain


def test_history(node: Node, url: str, sif: bytes) -> None:
    staged(node, 1, f"container:{url}", sif)
    staged(node, 2, f"container:{url}", sif)
    refused(node, 3, f"container:{url}.no", "NotFound")
    heads, *rows = node.hpcimg("history").stdout.splitlines()
    assert heads.split() == ["TIME", "EVENT", "JOB", "SIZE", "TOOK", "WHAT"]
    assert [row.split()[1:3] for row in rows] == [["fetched", "1"], ["hit", "2"], ["failed", "3"]]
    assert rows[1].endswith(url)
    assert f"there is nothing at {url}.no" in rows[2]
    assert [e["event"] for e in node.hpcimg_json("history", "--last", "2")["events"]] == [
        "hit", "failed",
    ]  # fmt: skip
    [event] = node.hpcimg_json("history", "--job", "2")["events"]
    assert (event["bytes"], event["took_s"] > 0) == (len(sif), True)


def test_explain_a_job_that_fetched_one_that_failed_and_one_that_ended(
    node: Node, url: str, sif: bytes
) -> None:
    staged(node, 1, f"container:{url}", sif)
    said = node.hpcimg("explain", "1").stdout
    assert "it has its images" in said
    assert f"{url}: it was not on this node, and {format_size(len(sif))} were fetched in " in said
    refused(node, 2, f"container:{url}.no", "NotFound")
    for _ in range(2):  # the second time without its record
        fields = node.hpcimg_json("explain", "2")
        assert fields["state"] == "failed"
        assert "(NotFound): there is nothing at" in fields["explanation"][1]
        assert "the job's user has to fix it" in fields["explanation"][1]
        node.epilog(2)
    node.epilog(1)
    assert node.hpcimg_json("explain", "1")["state"] == "ended"
    unknown = node.hpcimg("explain", "3")
    assert unknown.returncode == 12
    assert "job 3 used no images on this node" in unknown.stderr
    assert node.hpcimg("explain", "7_1").returncode == 10


def test_who_waits_for_whom(start: Start, node: Node, web: WebServer, make_sif: MakeSif) -> None:
    sif = make_sif(size_bytes=2 * MIB)
    url = web.put("/x.sif", sif)
    with web.hold("/x.sif", after_bytes=MIB) as hold:
        first = start(node, 7, f"container:{url}")
        hold.wait_reached()
        second = start(node, 8, f"container:{url}")
        wait_until(
            lambda: [w["job"] for w in node.hpcimg_json("status")["waiting"]] == ["8"],
            what="a job that waits",
        )
        [waiter] = node.hpcimg_json("status")["waiting"]
        assert (waiter["uris"], waiter["for_jobs"]) == ([url], ["7"])
        assert re.search(rf"^ +8 .* 7 has it +{url}$", node.hpcimg("status").stdout, re.MULTILINE)
        assert "hpcimg_jobs_waiting 1\n" in node.hpcimg("metrics").stdout
        assert "since job 7 is fetching what it needs" in node.hpcimg("explain", "8").stdout
        assert node.hpcimg_json("explain", "7")["state"] == "staging"
        hold.release()
        finish(first)
        finish(second)
    assert node.hpcimg_json("status")["waiting"] == []
    assert "job 7 was fetching it, and this job waited" in node.hpcimg("explain", "8").stdout


def test_a_prolog_that_was_interrupted(start: Start, node: Node, web: WebServer) -> None:
    url = web.put("/x.sif", bytes(MIB))
    with web.hold("/x.sif", after_bytes=1) as hold:
        prolog = start(node, 7, f"container:{url}")
        hold.wait_reached()
        os.killpg(prolog.pid, 9)
        prolog.communicate(timeout=TIMEOUT_S)
    assert node.hpcimg_json("explain", "7")["state"] == "interrupted"
    assert node.hpcimg_json("status")["waiting"] == []


# Bytes saved, and metrics


def test_what_the_cache_saved(node: Node, url: str, sif: bytes) -> None:
    for job in (1, 2, 3):
        staged(node, job, f"container:{url}", sif)
    lasting(node, url)  # of no job
    fields = node.hpcimg_json("status")
    size = len(sif)
    assert [fields[f"{n}_bytes"] for n in ("served", "fetched", "saved")] == [
        3 * size, size, 2 * size,
    ]  # fmt: skip
    told = f"{format_size(size)} fetched: {format_size(2 * size)} saved"
    assert f"1.1 MiB handed to jobs, {told}" in node.hpcimg("status").stdout


# Terminals


class Terminal:
    """The command line in a terminal of some size."""

    def __init__(self, node: Node, *arguments: str, columns: int, **environment: str) -> None:
        self.master, slave = pty.openpty()
        fields = {"HPCIMG_CONF": str(node.conf), "PYTHONPATH": str(ROOT), "TERM": "xterm",
                  "COLUMNS": str(columns), "LINES": "24", "LC_ALL": "C.UTF-8"}  # fmt: skip
        program = "import sys; from hpcimg.cli.main import main; sys.exit(main())"
        self.process = subprocess.Popen(
            # A shell has what it runs in the background ignore SIGINT.
            ["env", "--default-signal=INT", sys.executable, "-c", program, *arguments],
            env={"PATH": os.environ["PATH"], **fields, **environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def read_until(self, words: str = "") -> str:
        """Return what it shows up to these words, or to its end."""
        shown = ""
        while not words or words not in shown:
            assert select.select([self.master], [], [], 60)[0], shown
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the end of a terminal
                break
            shown += data.decode(errors="replace")
        return shown

    def end(self) -> int:
        """Return its exit code."""
        code = self.process.wait(timeout=TIMEOUT_S)
        os.close(self.master)
        return code


@pytest.mark.parametrize("columns", [80, 200])
def test_screens_fit(node: Node, web: WebServer, make_sif: MakeSif, columns: int) -> None:
    long = web.put(f"/{'a-rather-long-name-' * 6}.sif", make_sif())
    node.prolog(1, f"container:{long}")
    refused(node, 2, f"container:{long}.no", "NotFound")
    (node.directory / "conf.d" / "z.conf").write_text("[cache]\nmax_size = 1000\n")
    assert node.hpcimg("pin", long).returncode == 0
    for command in (["status"], ["ls"], ["history"], ["explain", "2"], ["doctor"]):
        terminal = Terminal(node, *command, columns=columns)
        shown = terminal.read_until().replace("\r", "")
        terminal.end()
        plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
        assert plain != shown
        # A path is not broken, however deep the cache is.
        lines = [line for line in plain.splitlines() if str(node.cache) not in line]
        assert max(map(len, lines)) <= columns, plain


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colour(node: Node, url: str, environment: dict[str, str], coloured: bool) -> None:
    node.prolog(1, f"container:{url}")
    terminal = Terminal(node, "ls", columns=80, **environment)
    assert ("\x1b[" in terminal.read_until()) is coloured
    assert terminal.end() == 0
    assert "\x1b" not in node.hpcimg("ls").stdout


def test_watch_draws_over_what_is_there(node: Node, url: str) -> None:
    node.prolog(1, f"container:{url}")
    terminal = Terminal(node, "status", "--watch", "0.1", columns=80)
    shown = terminal.read_until("\x1b[H")
    shown += terminal.read_until("\x1b[J")
    shown += terminal.read_until("\x1b[J")
    terminal.process.send_signal(signal.SIGINT)
    shown += terminal.read_until()
    assert terminal.end() == 130
    # The screen is emptied once; then each picture covers the one before.
    assert shown.count("\x1b[2J") == 1
    assert shown.count("\x1b[H") >= 2
    assert shown.rstrip().endswith("\x1b[?25h")
    assert "Traceback" not in shown


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "soon"])
def test_an_interval_that_is_none(node: Node, interval: str) -> None:
    assert node.hpcimg("status", f"--watch={interval}").returncode == 2


def test_verify_has_a_bar_on_a_terminal(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    lasting(node, web.put("/x.sif", make_sif(size_bytes=3 * MIB)))
    terminal = Terminal(node, "verify", "--rate", "4M", columns=80)
    shown = terminal.read_until()
    assert terminal.end() == 0
    assert "verifying [####" in shown
    assert node.hpcimg("verify").stderr == ""


def test_json_of_each_frame(node: Node) -> None:
    program = "import sys; from hpcimg.cli.main import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", program, "status", "--json", "--watch", "0.1"],
        env={**os.environ, "HPCIMG_CONF": str(node.conf), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        text = ""
        while text.count("\n}\n") < 2:
            text += process.stdout.readline()
        process.kill()
    assert json.loads(text.partition("\n}\n")[0] + "\n}")["version"] == 1
