"""Workers that are started before their order is known."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hpcimg.errors import NotFound
from hpcimg.fetch.settings import Settings
from hpcimg.reference import Reference
from hpcimg.slurm import watch
from hpcimg.worker import protocol, starting
from hpcimg.worker.process import Sandbox, Worker
from tests.parts.daemon import wait_until
from tests.parts.node import ROOT
from tests.parts.processes import gone


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    starting.end_early()


def order(path: str) -> protocol.Fetch:
    return protocol.Fetch(Reference("file", path), Settings(1, time.monotonic() + 30, 5.0, 5.0), "")


@pytest.mark.parametrize(
    "scheme", ["file", "https", "one-of-the-sites", "\udcff", "", starting.CONVERT]
)
def test_the_next_worker_is_the_one_that_was_started(scheme: str) -> None:
    starting.early(scheme)
    [early] = starting._early
    with Worker(order("/nowhere"), Sandbox(None, time.monotonic() + 30, 1 << 20)) as worker:
        assert worker._process is early
        assert starting._early == []
        output = os.memfd_create("output")
        worker.begin([output])
        with pytest.raises(NotFound, match="/nowhere"):
            all(worker.hear() is None for _ in itertools.count())
        os.close(output)


def test_what_nobody_takes_is_ended() -> None:
    starting.early("file")
    [early] = starting._early
    starting.end_early()
    assert early.returncode is not None
    starting.end_early()


def test_it_ends_with_who_started_it() -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        starting.early("file")
        os.write(theirs, b"%d" % starting._early[0].pid)
        os._exit(0)
    os.waitpid(pid, 0)
    worker = int(os.read(ours, 20))
    os.close(ours)
    os.close(theirs)
    wait_until(lambda: gone(worker), what="its end")


def test_it_has_no_file_of_who_started_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """slurmd and shells leave files open that programs inherit."""
    left = os.dup(2)
    os.set_inheritable(left, True)
    monkeypatch.setattr(starting, "_PROGRAM", "import os; print(*os.listdir('/proc/self/fd'))")
    started = starting.take()
    os.close(left)
    assert started.wait(30) == 0
    open_files = os.read(started.stdout, 1000).decode()
    assert sorted(open_files.split(), key=int) == ["0", "1", "2", "3"]  # 3 is the listing's own
    started.close()


@pytest.mark.parametrize("old", [False, True])
def test_it_has_a_session_of_its_own(old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = os.posix_spawn

    def without_setsid(*arguments: Any, setsid: bool = False, **options: Any) -> int:
        if setsid:
            raise NotImplementedError("posix_spawn: setsid unavailable on this platform")
        return spawn(*arguments, **options)

    if old:
        monkeypatch.setattr(os, "posix_spawn", without_setsid)
    monkeypatch.setattr(starting, "_PROGRAM", "import os; os.write(1, b'on'); os.read(0, 1)")
    started = starting.take()
    assert os.read(started.stdout, 2) == b"on"
    assert os.getsid(started.pid) == started.pid
    os.write(started.socket, b"x")
    assert started.wait(30) == 0
    started.close()


def test_hardly_anything_is_imported_before_the_worker_starts() -> None:
    """What a worker needs most of all is time to load its modules."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hpcimg.slurm.warm; "
        "from hpcimg.slurm import watch; print(*sys.modules)"
    )
    argv = [sys.executable, "-I", "-S", "-c", program, str(ROOT)]
    loaded = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    slow = {"socket", "subprocess", "signal", "enum", "typing", "contextlib", "collections", "re"}
    assert slow & set(loaded) == set()


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("https://example.org/x.sif", "https"),
        ("squashfs docker://example.org/x", "docker"),
        ("/shared/x.sif", "file"),
        ("oci:/shared/x", "oci"),
        ("alias", "alias"),
    ],
)
def test_the_scheme_of_a_reference(name: str, scheme: str) -> None:
    assert watch._scheme_of(name) == scheme


HURRIES = """
import contextlib, itertools, json, os, sys, time
sys.path.insert(0, sys.argv[1])
from hpcimg.errors import NotFound
from hpcimg.worker import starting
from hpcimg.worker.process import Sandbox, Worker
from tests.unit.test_starting import order

starting.hurry()
with Worker(order("/nowhere"), Sandbox(None, time.monotonic() + 30, 1 << 20)) as worker:
    def look():
        return [os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, worker._process.pid)]
    before = look()
    starting.settle()
    worker.begin([os.memfd_create("output")])
    with contextlib.suppress(NotFound):
        all(worker.hear() is None for _ in itertools.count())
    print(json.dumps([before, look()]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may go first")
def test_who_hurries_and_its_worker_take_turns_again() -> None:
    argv = [sys.executable, "-c", HURRIES, str(ROOT)]
    done = subprocess.run(["nice", "-n", "3", *argv], check=True, capture_output=True, text=True)
    ours = 3 + os.getpriority(os.PRIO_PROCESS, 0)
    assert json.loads(done.stdout) == [[-20, -20], [ours, ours]]


@pytest.mark.parametrize("proxy", ["", "http://proxy.example:3128"])
def test_a_worker_loads_requests_only_behind_a_proxy(proxy: str) -> None:
    ours, its = socket.socketpair()
    ours.close()  # so it ends instead of waiting for an order
    program = [sys.executable, "-X", "importtime", "-I", "-c", starting._PROGRAM, str(ROOT), "0"]
    with its:
        done = subprocess.run(
            [*program, "https"],
            stdin=its,
            env={"https_proxy": proxy, "no_proxy": "localhost"},
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [line.rpartition("|") for line in done.stderr.splitlines()]
    assert all(before.startswith("import time:") for before, _, _ in lines), done.stderr
    loaded = {name.strip() for _, _, name in lines}
    # Modules that were looked for in vain are listed as well, packages' parts only if loaded.
    parts = {name.partition(".")[0] for name in loaded if "." in name}
    assert proxy or parts & {"charset_normalizer", "chardet"} == set()
    assert "hpcimg.http.download" in loaded
    assert ("requests.adapters" in loaded) is bool(proxy)
