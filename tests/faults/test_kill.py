"""Prolog and Epilog killed with SIGKILL at a random moment; whoever comes next finds all well.

HPCIMG_KILL_ROUNDS says how many rounds there are (`make test-kill`: a thousand),
HPCIMG_KILL_SEED repeats the choices of a run that failed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.invariants import (
    check_images,
    check_no_jobs,
    check_no_leftovers,
    check_not_misled,
    check_staged,
)
from tests.parts.daemon import TIMEOUT_S
from tests.parts.images import make_sif
from tests.parts.node import EPILOG, Node
from tests.parts.webfaults import Chunked, Slow
from tests.parts.webserver import WebServer

ROUNDS = int(os.environ.get("HPCIMG_KILL_ROUNDS", "12"))
SEED = int(os.environ.get("HPCIMG_KILL_SEED") or random.SystemRandom().randrange(10**6))
MIB = 1 << 20
SIZES = (50_000, MIB, 6 * MIB, 20 * MIB)
# Who comes next does not wait for the dead: that would take longer than a run may.
PATIENT = "[stage]\npatience = 5m\n"
_PADDING = 40_000  # within what make_sif fills with noise
pytestmark = pytest.mark.timeout(300 + 5 * ROUNDS)


class Plan(NamedTuple):
    """What one round is about. `moment` is a part of the time that a run takes."""

    source: str
    size: int
    victims: str
    moment: float
    waiter: bool


def plan_round(number: int) -> Plan:
    choose = random.Random(f"{SEED} {number}")
    return Plan(
        source=choose.choice(sorted(SOURCES)),
        size=choose.choice(SIZES),
        victims=choose.choice(sorted(VICTIMS)),
        moment=choose.uniform(0, 1.1),
        waiter=choose.random() < 0.3,
    )


class Images:
    """Images of all sizes, a new one for every round, offered in several ways."""

    def __init__(self, directory: Path, web: WebServer) -> None:
        self.web = web
        self.directory = directory
        self._made = {
            size: make_sif(directory / f"{size}.sif", {"n": b"x"}, size_bytes=size).read_bytes()
            for size in SIZES
        }

    def offer(self, plan: Plan, number: int) -> tuple[str, bytes]:
        """Return the reference and the bytes of a new image."""
        data = bytearray(self._made[plan.size])
        data[_PADDING : _PADDING + 8] = number.to_bytes(8, "big")
        return SOURCES[plan.source](self, f"/{number}.sif", bytes(data)), bytes(data)

    def file(self, name: str, data: bytes) -> str:
        path = Path(f"{self.directory}{name}")
        path.write_bytes(data)
        return str(path)

    def url(self, name: str, data: bytes) -> str:
        return self.web.put(name, data, etag='"1"')

    def url_without_length(self, name: str, data: bytes) -> str:
        self.web.script(name, [Chunked()] * 9)
        return self.web.put(name, data)

    def slow_url(self, name: str, data: bytes) -> str:
        self.web.script(name, [Slow(len(data) / 0.3)] * 9)
        return self.web.put(name, data, etag='"1"')


SOURCES: dict[str, Callable[[Images, str, bytes], str]] = {
    "file": Images.file,
    "web": Images.url,
    "web without length": Images.url_without_length,
    "slow web": Images.slow_url,
}


def kill_group(pid: int) -> bool:
    os.killpg(pid, signal.SIGKILL)
    return True


def kill_hook(pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def kill_fetch(pid: int) -> bool:
    return _kill_member(pid, "hpcimg.worker.main")


def kill_program(pid: int) -> bool:
    return _kill_member(pid, "hpcimg.slurm")


# Each returns whether the hook itself was hit.
VICTIMS: dict[str, Callable[[int], bool]] = {
    "the process group": kill_group,
    "the hook": kill_hook,
    "the process that fetches": kill_fetch,
    "the program below the hook": kill_program,
}


def _kill_member(group: int, mark: str) -> bool:
    """Kill the process of a group that has the mark in its arguments, else the whole group."""
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == group and mark in (directory / "cmdline").read_text("latin-1"):
                os.kill(pid, signal.SIGKILL)
                return False
    return kill_group(group)


def kill(hook: subprocess.Popen[str], after_s: float, victims: str) -> bool:
    """Kill what belongs to a hook in so many seconds, if it still runs then.

    Returns whether the hook itself was hit.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        hook.wait(after_s)
        return False
    # Not reaped yet, so the pid is still its own.
    with contextlib.suppress(ProcessLookupError):
        return VICTIMS[victims](hook.pid)
    return False


@contextlib.contextmanager
def told(number: int, plan: object) -> Iterator[None]:
    """Add to a failure how to reproduce it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"round {number} with HPCIMG_KILL_SEED={SEED}: {plan}")
        raise


def wait_all_gone(hook: subprocess.Popen[str]) -> str:
    """Wait until no process of a hook is left; return what they printed.

    Each of them holds the pipe open.
    """
    return hook.communicate(timeout=TIMEOUT_S)[0]


@contextlib.contextmanager
def measured(took: dict[str, float], what: str) -> Iterator[None]:
    """Keep a running mean of how long something takes."""
    began = time.monotonic()
    yield
    took[what] = (took[what] + time.monotonic() - began) / 2


def test_the_prolog(node: Node, web: WebServer, open_directory: Path) -> None:
    node.configure(f"[cache]\nmax_size = 64M\nmin_age = 0s\n{PATIENT}")
    images = Images(open_directory, web)
    took = dict.fromkeys(SOURCES, 0.4)
    for number in range(ROUNDS):
        plan = plan_round(number)
        with told(number, plan):
            uri, data = images.offer(plan, number)
            comment = f"container:{uri}"
            victim, after, waiter = (f"{3 * number + n}" for n in range(1, 4))
            hook = node.start_prolog(victim, comment)
            waiting = node.start_prolog(waiter, comment) if plan.waiter else None
            hit = kill(hook, plan.moment * took[plan.source], plan.victims)

            check_images(node)
            with measured(took, plan.source):
                node.prolog(after, comment)
            check_staged(node, after, data)
            if waiting:
                assert wait_all_gone(waiting) == ""
                check_staged(node, waiter, data)
            wait_all_gone(hook)
            assert hit or hook.returncode == 0, "slurmd would drain the node"
            check_not_misled(node, victim, data)
            check_images(node)
            check_no_leftovers(node)
            for job in (victim, after, waiter):
                node.epilog(job)
            check_no_jobs(node)


def test_the_epilog(node: Node, web: WebServer, open_directory: Path) -> None:
    """Each round fills a cache of ten images, so that its epilog has several to evict."""
    node.configure(f"[cache]\nmax_size = 10M\nmin_age = 0s\nlow_watermark = 50%\n{PATIENT}")
    images = Images(open_directory, web)
    took = {"epilog": 0.2}
    for number in range(max(3, ROUNDS // 4)):
        plan = plan_round(number)._replace(source="file", size=MIB)
        with told(number, plan):
            offered = [images.offer(plan, 8 * number + n) for n in range(8)]
            comments = [f"container:{uri}" for uri, _ in offered]
            ending, using, after = (f"{3 * number + n}" for n in range(1, 4))
            assert node.stage(using, comments[0]).code == 0
            assert node.stage(ending, " ".join(comments[1:7])).code == 0
            hook = start_epilog(node, ending)
            hit = kill(hook, plan.moment * took["epilog"], plan.victims)

            check_images(node)
            check_staged(node, using, offered[0][1])
            wait_all_gone(hook)
            assert hit or hook.returncode == 0, "slurmd would drain the node"
            node.prolog(after, comments[7])
            check_staged(node, after, offered[7][1])
            # The next job's epilog does what the killed one left undone.
            with measured(took, "epilog"):
                node.epilog(after)
            check_images(node)
            check_staged(node, using, offered[0][1])
            assert len(node.images()) <= 9
            for job in (ending, using):
                node.epilog(job)
            check_no_leftovers(node)
            check_no_jobs(node)


def start_epilog(node: Node, job: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(EPILOG)],
        env=node.environment(job),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
