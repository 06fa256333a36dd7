"""What a worker leaves behind, and its limits."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hpcimg.errors import Bug, DeadlinePassed, Interrupted, TooLarge
from hpcimg.fetch.contract import Blob, Declined, Fetched, Files, Gathered, Offer
from hpcimg.fetch.settings import Settings
from hpcimg.peers.member import _Member
from hpcimg.reference import Reference
from hpcimg.worker import main, monitor, namespaces, process, seal, starting
from hpcimg.worker.protocol import (
    Convert,
    Digest,
    DigestWanted,
    Fetch,
    Published,
    Rewound,
    Share,
    Start,
    encode,
)
from hpcimg.worker.protocol import Layer as ToConvert
from tests.parts.daemon import TIMEOUT_S
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


SPEAKS = """
import os, socket, sys, time
inbox = socket.socket(fileno=os.dup(0))
def hear():
    return socket.recv_fds(inbox, 1 << 20, 10)[:2]
def say(line):
    os.write(1, line.encode() + bytes([10]))
"""


def worker(*, seconds: float = 30) -> process.Worker:
    """Start a process, for `_PROGRAM` as a test has it."""
    sandbox = process.Sandbox(None, time.monotonic() + seconds, 0)
    return process.Worker(order(Path("/x")), sandbox)


def has_namespaces() -> bool:
    """Tell whether this host lets us make PID namespaces."""
    program = ["unshare", "--pid", "--fork", "true"]
    return subprocess.run(program, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="PID namespaces cannot be made here")
def test_what_it_detached_is_gone_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "held"
    monkeypatch.setattr(starting, "_PROGRAM", DETACHED.format(path=str(path)))
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
    monkeypatch.setattr(starting, "_PROGRAM", SEES.format(root=str(ROOT)))
    with worker() as made:
        assert made.hear() == Rewound(1)
    assert len(os.listdir("/proc")) > before / 2  # ours is what it was


ASKS_AND_DOES_NOT_LISTEN = """
import os
while True:
    os.write(1, b'["DigestWanted", null]' + bytes([10]))
"""


def test_who_asks_and_does_not_listen_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_PROGRAM", ASKS_AND_DOES_NOT_LISTEN)
    with worker(seconds=2) as made:
        assert made.hear() == DigestWanted(None)
        full = [b"0" * 100_000] * 100  # more than waits in any socket
        with pytest.raises(DeadlinePassed, match="/x was not ready in time"):
            made.tell(Digest(str(full)))


def test_without_namespaces_it_runs_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "_OURS", "/nonexistent")
    monkeypatch.setattr(
        starting, "_PROGRAM", "import os; print('[\"Rewound\", %d]' % os.getppid())"
    )
    with worker() as made:
        assert made.hear() == Rewound(os.getpid())


def test_who_never_ends_to_speak_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "while True: os.write(1, b'[\"Rewound\", null]\\n' * 1000)"
    monkeypatch.setattr(starting, "_PROGRAM", f"import os\n{program}")
    with worker(seconds=2) as made, pytest.raises(DeadlinePassed, match="was not ready in time"):
        all(made.hear() for _ in itertools.count())


def test_who_hangs_up_and_stays_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_PROGRAM", "import os, time; os.close(1); time.sleep(60)")
    with worker(seconds=1) as made, pytest.raises(DeadlinePassed):
        made.hear()


TRACES = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long] * 4
PTRACE_SEIZE = 0x4206
print(libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), 0, 0), flush=True)
sys.stdin.read()
"""


@contextmanager
def traced(pid: int) -> Iterator[None]:
    """Trace a process: for who waits for it, it does not end before its tracer lets it."""
    argv = [sys.executable, "-I", "-c", TRACES, str(pid)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tracer:
        assert tracer.stdout
        if tracer.stdout.readline() != b"0\n":
            pytest.skip("no process can be traced here")
        yield
        tracer.kill()


def test_who_cannot_be_ended_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(process, "_TO_END_S", 0.2)
    made = worker(seconds=0.2)
    process_of = made._process
    with traced(process_of.pid), pytest.raises(DeadlinePassed, match="cannot be ended"):
        made.end()
    made.end()  # which has said so
    process_of.wait(TIMEOUT_S)  # its tracer is gone
    made.__exit__()


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
    with target.open("w+b", buffering=0) as file:
        outcome = monitor.fetch(order(path), file.fileno(), Listens(), sandbox)
        with pytest.raises(OSError, match="Bad file descriptor"):  # it is for reading alone now
            file.write(b"x")
        return outcome


@pytest.mark.parametrize(
    ("scheme", "validator", "starts"),
    [("docker", "", 1), ("docker", "sha256:0", 0), ("oras", "", 0), ("oci-archive", "", 1)],
)
def test_what_converts_is_started_while_layers_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, validator: str, starts: int
) -> None:
    """But not for an image that may be on the node already."""
    started = list[str]()
    early = starting.early

    def starting_early(work: str) -> None:
        started.append(work)
        early(work)

    monkeypatch.setattr(starting, "early", starting_early)
    monkeypatch.setattr(starting, "_PROGRAM", SPEAKS + """hear(); say('["Done"]'); hear()""")
    wanted = order(Path("/x"))._replace(reference=Reference(scheme, "h/x"), validator=validator)
    sandbox = process.Sandbox(None, time.monotonic() + 30, 1)
    with (tmp_path / "target").open("w+b") as file:
        monitor.fetch(wanted, file.fileno(), Listens(), sandbox)
    assert started == [starting.CONVERT] * starts
    assert starting._early == []  # there were no layers


CHANGES_ITS_MIND = """
_, [file] = hear()
os.pwrite(file, b"A" * 1000, 0)
say('["Moved", null, 1000, 1000]')
time.sleep(0.2)  # in which it may be read
os.pwrite(file, b"B" * 10, 0)
say('["Done"]')
time.sleep(60)
"""


def test_what_is_digested_is_what_is_there_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "_PROGRAM", SPEAKS + CHANGES_ITS_MIND)
    target = tmp_path / "target"
    fetched = fetch(Path("/x"), target, 10_000)
    assert target.read_bytes() == b"B" * 10 + b"A" * 990
    assert fetched == Fetched(1000, hashlib.sha256(target.read_bytes()).hexdigest())


HANDS_IT_ON = """
_, [file] = hear()
os.pwrite(file, b"A" * 1000, 0)
friend = socket.socket(socket.AF_UNIX)
friend.connect({friend!r})
socket.send_fds(friend, [b"x"], [file])
say('["Done"]')
time.sleep(60)
"""


LAYER = b"A" * 1000
IN_LAYERS = Offer("v", config="{}", layers=(Blob(hashlib.sha256(LAYER).hexdigest(), 1000),) * 2)
BRINGS_LAYERS = f"""
hear()
say('["Offering", {json.dumps(IN_LAYERS)}]')
files = hear()[1]
os.pwrite(files[1], b"A" * 1000, 0)
"""


class Gathers(Listens):
    """Takes layers into files of its own. `then` is called when one has arrived."""

    def __init__(self, directory: Path, then: Callable[[], object] = lambda: None) -> None:
        self.files = [os.open(directory / f"{n}", os.O_RDWR | os.O_CREAT) for n in range(2)]
        self.got: dict[int, Fetched] = {}
        self.then = then

    def offered(self, offer: Offer) -> Files:
        assert offer == IN_LAYERS
        return self.files

    def arrived(self, number: int, fetched: Fetched) -> None:
        assert number not in self.got
        self.got[number] = fetched
        self.then()

    def fetch(self, program: str, monkeypatch: pytest.MonkeyPatch) -> object:
        monkeypatch.setattr(starting, "_PROGRAM", SPEAKS + BRINGS_LAYERS + program)
        sandbox = process.Sandbox(None, time.monotonic() + 30, 10_000)
        try:
            return monitor.fetch(order(Path("/x")), self.files[0], self, sandbox)
        finally:
            for file in self.files:
                os.close(file)


def test_a_layer_arrives_while_others_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "go on")
    listener = Gathers(tmp_path, lambda: (tmp_path / "go on").write_text("x"))
    program = f"""
os.close(files[1])
say('["Complete", 1]')
open({str(tmp_path / "go on")!r}).read()  # nothing more is said before the parent has it
say('["Done"]')
"""
    assert listener.fetch(program, monkeypatch) == Gathered()
    assert listener.got == {1: Fetched(1000, IN_LAYERS.layers[1].sha256)}


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("""say('["Complete", 1]')\ntime.sleep(60)""", Interrupted, "has its file open"),
        ("""say('["Complete", 2]')\ntime.sleep(60)""", Bug, "not requested"),
    ],
    ids=["it is open", "there is none"],
)
def test_a_layer_that_is_not_complete(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr(seal, "_LATE_S", 0.2)
    with pytest.raises(error, match=message):
        Gathers(tmp_path).fetch(program, monkeypatch)


def test_a_layer_that_is_too_short_does_not_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Gathers(tmp_path)
    program = """say('["Complete", 0]'); say('["Done"]')"""
    assert listener.fetch(program, monkeypatch) == Gathered()
    assert list(listener.got) == [1]


def test_messages_with_files_that_arrive_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike answers, layers to convert come when they come."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(os, "dup", lambda _: theirs.detach())
    parent = main._Parent()
    monkeypatch.undo()
    names = ["null", "zero", "full"]
    start = Start(None, 5, Convert("docker://h/x:1", "x" * 50_000, (), "/", "sif", "zstd:1", 0))
    with ours, ExitStack() as stack:
        files = [stack.enter_context(open(f"/dev/{name}", "rb")).fileno() for name in names]
        text = encode(start)
        # What is in the buffer is cut wherever the kernel likes.
        sent = socket.send_fds(ours, [text[:20_000]], files[:1])
        ours.sendall(text[sent:])
        socket.send_fds(ours, [encode(ToConvert(1))], files[1:2])
        ours.sendall(encode(Digest("1")))
        socket.send_fds(ours, [encode(ToConvert(0))], files[2:])
        heard = [parent.hear() for _ in range(4)]
    assert [message for message, _ in heard] == [start, ToConvert(1), Digest("1"), ToConvert(0)]
    assert [[os.readlink(f"/proc/self/fd/{file}") for file in came] for _, came in heard] == [
        ["/dev/null"], ["/dev/zero"], [], ["/dev/full"],
    ]  # fmt: skip
    for file in itertools.chain(*(came for _, came in heard)):
        os.close(file)
    parent._socket.close()


def test_a_member_of_a_swarm_hears_what_arrives_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    signer, desk = socket.socketpair()
    monkeypatch.setattr(os, "dup", lambda _: theirs.detach())
    parent = main._Parent()
    monkeypatch.undo()
    share = Share("u", "w", "1", "n1", ("n1",), 1, (), str(tmp_path), 1, 1, 1, 0)
    (tmp_path / "image").write_bytes(b"image")

    async def heard() -> tuple[object, bytes]:
        member = _Member(share, [os.dup(desk.fileno())], parent)
        member._published = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(parent.fileno(), member._hear)
        async with asyncio.timeout(5):
            told = await member._told.get()
            file, size = await member._published
        member._desk._socket.close()
        with open(file, "rb") as image:
            return told, image.read(size)

    # An image that is cached is declined, and sent on in the same moment.
    with ours, signer, desk, (tmp_path / "image").open("rb") as image:
        message = encode(Declined()) + encode(Published(5))
        assert socket.send_fds(ours, [message], [image.fileno()]) == len(message)
        assert asyncio.run(heard()) == (Declined(), b"image")
    parent._socket.close()


def test_who_cannot_be_ended_keeps_no_room_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, sizes = tmp_path / "target", list[int]()
    end = process.Worker.end

    def end_badly(worker: process.Worker) -> None:
        end(worker)
        sizes.append(target.stat().st_size)
        raise DeadlinePassed("it cannot be ended")

    (tmp_path / "image").write_bytes(bytes(1000))
    monkeypatch.setattr(process.Worker, "end", end_badly)
    with pytest.raises(DeadlinePassed, match="cannot be ended"):
        fetch(tmp_path / "image", target, 10_000)
    assert sizes[0] == 1000
    assert target.stat().st_size == 0


def convert(_: Path, target: Path, image_bytes: int) -> object:
    sandbox = process.Sandbox(None, time.monotonic() + 30, image_bytes)
    work = Convert("docker://h/x:1", "{}", (), "/nonexistent", "squashfs", "zstd:1", 1)
    with (
        target.open("w+b", buffering=0) as file,
        monitor.convert(work, file.fileno(), lambda *_: None, sandbox) as conversion,
    ):
        return conversion.finish()


@pytest.mark.parametrize("brings", [fetch, convert])
def test_nothing_is_kept_that_somebody_else_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brings: Callable[[Path, Path, int], object]
) -> None:
    path = str(tmp_path / "friend")
    monkeypatch.setattr(starting, "_PROGRAM", SPEAKS + HANDS_IT_ON.format(friend=path))
    with socket.socket(socket.AF_UNIX) as friend:
        friend.bind(path)
        friend.listen()
        with pytest.raises(Interrupted, match="has its file open"):
            brings(Path("/x"), tmp_path / "target", 10_000)
        with friend.accept()[0] as connection:  # where it is, still
            _, [file], _, _ = socket.recv_fds(connection, 10, 10)
            assert os.pwrite(file, b"C", 0) == 1
            os.close(file)


def test_a_file_that_gets_too_large(tmp_path: Path) -> None:
    path, target = tmp_path / "image", tmp_path / "target"
    path.write_bytes(b"x" * 200_000)
    assert fetch(path, target, 200_000)
    os.truncate(path, 70 << 20)
    with pytest.raises(TooLarge, match="this node accepts images up to"):
        fetch(path, target, 100_000)
    assert target.stat().st_size == 100_000 + (64 << 20)


LIMITED = """
import ctypes, os, resource, sys
sys.path.insert(0, sys.argv[1])
from hpcimg.worker import privileges
privileges.give_up(None, file_bytes=1 << 20, memory_bytes=1 << 30)
print(open("/proc/self/oom_score_adj").read().strip())
print(*(resource.getrlimit(name)[1] for name in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)))
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
try:
    bytearray(2 << 30)
except MemoryError:
    print("enough")
"""


def test_limits() -> None:
    program = [sys.executable, "-I", "-c", LIMITED, str(ROOT)]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["1000", "1024 0", "0", "enough"]


def test_a_lower_limit_of_the_node_stays() -> None:
    program = [sys.executable, "-I", "-c", LIMITED, str(ROOT)]
    limited = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *program]
    done = subprocess.run(limited, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[1] == "64 0"


KEYRING = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from hpcimg.worker import privileges
def own():  # KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING, made where there is none
    return ctypes.CDLL(None).syscall(privileges._KEYCTL[privileges.os.uname().machine], 0, -3, 1)
before = own()
privileges.give_up(None, file_bytes=1 << 20, memory_bytes=1 << 30)
print(before, own())
"""


def test_the_keys_of_who_started_it_are_not_its_own() -> None:
    program = [sys.executable, "-I", "-c", KEYRING, str(ROOT)]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    before, after = done.stdout.split()
    if before == "-1":
        pytest.skip("this kernel or container has no keyrings")
    assert before != after
