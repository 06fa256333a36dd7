"""What a worker leaves behind, and what it may use up."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcimg.errors import DeadlinePassed, TooLarge
from hpcimg.fetch.contract import Fetched, Files, Offer
from hpcimg.fetch.settings import Settings
from hpcimg.reference import Reference
from hpcimg.worker import monitor, namespaces, process
from hpcimg.worker.protocol import Digest, DigestWanted, Fetch, Rewound
from tests.parts.node import ROOT

# It leaves session and group, and is nobody's child any more.
DETACHED = """
import fcntl, os, sys, time
file = open({path!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print('["Rewound", %d]' % os.getpid(), flush=True)
        time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def order(path: Path) -> Fetch:
    settings = Settings(1, time.monotonic() + 30, 5.0, 5.0)
    return Fetch(Reference("file", str(path)), settings, "")


def worker(*, seconds: float = 30) -> process.Worker:
    """Start a process, for `_START` as a test has it."""
    sandbox = process.Sandbox(None, time.monotonic() + seconds, 0)
    return process.Worker(order(Path("/x")), sandbox)


def has_namespaces() -> bool:
    """Tell whether this host lets us make PID namespaces."""
    program = ["unshare", "--pid", "--fork", "true"]
    return subprocess.run(program, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="PID namespaces cannot be made here")
def test_what_it_detached_is_gone_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "held"
    monkeypatch.setattr(process, "_START", DETACHED.format(path=str(path)))
    with worker() as made:
        said = made.hear()
        while said is None:
            said = made.hear()
        assert isinstance(said, Rewound)
        assert said.layer
        assert said.layer < 10
        made.end()
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more
    pid = [sys.executable, "-I", "-S", "-c", "import os; print(os.getpid())"]
    assert int(subprocess.run(pid, check=True, capture_output=True).stdout) > 10


SEES = """
import os, sys
sys.path.insert(0, {root!r})
from hpcimg.worker import namespaces
namespaces.mount_own_proc()
print('["Rewound", %d]' % len([name for name in os.listdir("/proc") if name.isdigit()]))
"""


@pytest.mark.skipif(not has_namespaces(), reason="PID namespaces cannot be made here")
def test_a_conversion_sees_its_own_processes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc"))
    monkeypatch.setattr(process, "_START", SEES.format(root=str(ROOT)))
    with worker() as made:
        assert made.hear() == Rewound(1)
    assert len(os.listdir("/proc")) > before / 2  # ours is what it was


ASKS_AND_DOES_NOT_LISTEN = """
import os
while True:
    os.write(1, b'["DigestWanted", null]' + bytes([10]))
"""


def test_who_asks_and_does_not_listen_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START", ASKS_AND_DOES_NOT_LISTEN)
    with worker(seconds=2) as made:
        assert made.hear() == DigestWanted(None)
        full = [b"0" * 100_000] * 100  # more than waits in any socket
        with pytest.raises(DeadlinePassed, match="/x was not ready in time"):
            made.tell(Digest(str(full)))


def test_without_namespaces_it_runs_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "_OURS", "/nonexistent")
    monkeypatch.setattr(process, "_START", "import os; print('[\"Rewound\", %d]' % os.getppid())")
    with worker() as made:
        assert made.hear() == Rewound(os.getpid())


class Listens:
    """Takes what is offered."""

    def offered(self, offer: Offer) -> Files | None:
        return ()

    def arrived(self, number: int, fetched: Fetched) -> None:
        raise AssertionError

    def progress(self, phase: str, done: int, total: int | None) -> None:
        pass


def fetch(path: Path, target: Path, image_bytes: int) -> object:
    sandbox = process.Sandbox(None, time.monotonic() + 30, image_bytes)
    with target.open("w+b") as file:
        return monitor.fetch(order(path), file.fileno(), Listens(), sandbox)


def test_a_file_that_gets_too_large(tmp_path: Path) -> None:
    path, target = tmp_path / "image", tmp_path / "target"
    path.write_bytes(b"x" * 200_000)
    assert fetch(path, target, 200_000)
    os.truncate(path, 70 << 20)
    with pytest.raises(TooLarge, match="this node takes images up to"):
        fetch(path, target, 100_000)
    assert target.stat().st_size == 100_000 + (64 << 20)


LIMITED = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
from hpcimg.worker import privileges
privileges.give_up(None, file_bytes=1 << 20, memory_bytes=1 << 30)
print(open("/proc/self/oom_score_adj").read().strip())
print(*(resource.getrlimit(name)[1] for name in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)))
try:
    bytearray(2 << 30)
except MemoryError:
    print("enough")
"""


def test_limits() -> None:
    program = [sys.executable, "-I", "-c", LIMITED, str(ROOT)]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1000", "1024 0", "enough"]


def test_a_lower_limit_of_the_node_stays() -> None:
    program = [sys.executable, "-I", "-c", LIMITED, str(ROOT)]
    limited = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *program]
    done = subprocess.run(limited, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[1] == "64 0"
