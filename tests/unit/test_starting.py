"""A worker that is started before its order is known."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from hpcimg.fetch.settings import Settings
from hpcimg.reference import Reference
from hpcimg.slurm import watch
from hpcimg.worker import protocol, starting
from hpcimg.worker.process import Sandbox, Worker
from tests.parts.daemon import wait_until
from tests.parts.processes import gone


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    starting.end_early()


def order(path: str) -> protocol.Fetch:
    return protocol.Fetch(Reference("file", path), Settings(1, time.monotonic() + 30, 5.0, 5.0), "")


@pytest.mark.parametrize("scheme", ["file", "https", "one-of-the-sites", "\udcff", ""])
def test_the_next_worker_is_the_one_that_was_started(scheme: str) -> None:
    starting.early(scheme)
    [early] = starting._early
    with Worker(order("/nowhere"), Sandbox(None, time.monotonic() + 30, 1 << 20)) as worker:
        assert worker._process is early.process
        assert starting._early == []
        output = os.memfd_create("output")
        worker.begin([output])
        said = worker.hear()
        while said is None:
            said = worker.hear()
        os.close(output)
        assert isinstance(said, protocol.Failed)
        assert said.error == "NotFound"


def test_what_nobody_takes_is_ended() -> None:
    starting.early("file")
    [early] = starting._early
    starting.end_early()
    assert early.process.returncode is not None
    starting.end_early()


def test_it_ends_with_who_started_it() -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        starting.early("file")
        os.write(theirs, b"%d" % starting._early[0].process.pid)
        os._exit(0)
    os.waitpid(pid, 0)
    worker = int(os.read(ours, 20))
    os.close(ours)
    os.close(theirs)
    wait_until(lambda: gone(worker), what="its end")


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
