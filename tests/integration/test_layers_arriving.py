"""An image in layers that is converted while its lowest one is still held back by its server."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

import pytest

from hpcimg.cache import inflight
from hpcimg.cache.paths import Layout
from hpcimg.image.architecture import go_name
from tests.integration.checks import failed
from tests.integration.conftest import Start
from tests.parts import images
from tests.parts.daemon import wait_until
from tests.parts.images import read_from_image
from tests.parts.node import Node
from tests.parts.ociimages import CONFIG, make_layer
from tests.parts.processes import descendants, gone, status_of
from tests.parts.webregistry import path_of_blob, put_image
from tests.parts.webserver import Hold, WebServer

pytestmark = pytest.mark.skipif(bool(images.missing()), reason=images.missing() or "-")
REPOSITORY = "test/image"
LOW = make_layer({"low": b"low\n", "both": b"low\n"})
# So much that mksquashfs writes before it has it all.
HIGH = make_layer({"high": os.urandom(6_000_000), "both": b"high\n"})
WRITTEN = 1_000_000


class Converting(NamedTuple):
    """A job whose image is being converted, while `hold` holds its lowest layer."""

    node: Node
    web: WebServer
    comment: str
    prolog: Popen[str]
    hold: Hold

    def workers(self) -> dict[str, int]:
        """Return the processes of this job, by what they do."""
        workers = [pid for pid in descendants(self.prolog.pid) if is_worker(pid)]
        [fetches] = [pid for pid in workers if not descendants(pid)]
        [converts] = [pid for pid in workers if descendants(pid)]  # by its tool
        [leads] = status_of(fetches)["PPid"]
        return {"fetches": fetches, "converts": converts, "leads": int(leads)}

    def check_thrown_away(self) -> None:
        """See that of all this only the highest layer is left."""
        assert self.node.images() == []
        assert self.node.leftovers() == []
        assert [path.stat().st_size for path in self.node.cache.glob("blobs/*")] == [len(HIGH.data)]

    def check_next(self) -> None:
        """See that the next job gets the image, and that the highest layer is not fetched again."""
        self.web.put(path_of_blob(REPOSITORY, LOW.data), LOW.data)
        task = self.node.stage(2, self.comment)
        assert read_from_image(task.image, "both") == b"high\n"
        assert read_from_image(task.image, "low") == b"low\n"
        assert self.web.count("GET", path_of_blob(REPOSITORY, HIGH.data)) == 1
        assert self.node.leftovers() == []


def is_worker(pid: int) -> bool:
    return "hpcimg.worker.main" in Path(f"/proc/{pid}/cmdline").read_text()


@contextmanager
def converting(
    node: Node, web: WebServer, start: Start, *, sent: bytes = LOW.data
) -> Iterator[Converting]:
    """Let a job come so far; `sent` is what is sent for the lowest layer."""
    node.configure(f"[registry 127.0.0.1:{web.port}]\ninsecure = yes\n")
    config = {
        "architecture": go_name(),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [LOW.diff_id, HIGH.diff_id]},
    }
    layers = [(layer.media_type, layer.data) for layer in (LOW, HIGH)]
    comment = put_image(web, REPOSITORY, (CONFIG, json.dumps(config).encode()), layers)
    web.put(path_of_blob(REPOSITORY, LOW.data), sent)
    with web.hold(path_of_blob(REPOSITORY, LOW.data), after_bytes=10) as hold:
        prolog = start(node, 1, comment)
        hold.wait_reached()
        wait_until(
            lambda: any(path.stat().st_size > WRITTEN for path in node.cache.glob("tmp/*.image")),
            timeout_s=30,
            what="the conversion",
        )
        yield Converting(node, web, comment, prolog, hold)


def test_it_is_ready_soon_after_the_last_layer(node: Node, web: WebServer, start: Start) -> None:
    with converting(node, web, start) as job:
        layout = Layout(str(node.cache), str(node.state))
        wait_until(  # it says so once a second
            lambda: inflight.under_way(layout)[0]["written"] > WRITTEN,
            timeout_s=10,
            what="the image as what is written",
        )
        [work] = inflight.under_way(layout)
        assert (work["phase"], work["total"]) == ("fetching", len(LOW.data) + len(HIGH.data))
        # The layer that is kept counts as one, and no longer as what is under way.
        assert work["written"] + work["coming"] < 1.5 * len(HIGH.data)
        job.hold.release()
        assert job.prolog.wait(60) == 0
        job.check_next()


def test_the_last_layer_is_another_one(node: Node, web: WebServer, start: Start) -> None:
    wrong = bytes([*LOW.data[:-1], LOW.data[-1] ^ 1])
    with converting(node, web, start, sent=wrong) as job:
        job.hold.release()
        assert job.prolog.wait(60) == 0
        failed(node, 1, node.task(1), "Damaged", "layer 1 of 2", "digest")
        job.check_thrown_away()
    job.check_next()


@pytest.mark.parametrize("who", ["fetches", "converts", "leads"])
def test_a_process_that_is_killed(node: Node, web: WebServer, start: Start, who: str) -> None:
    with converting(node, web, start) as job:
        workers = job.workers()
        os.kill(workers[who], signal.SIGKILL)
        for each in ("fetches", "converts"):
            wait_until(lambda pid=workers[each]: gone(pid), timeout_s=10, what="its end")
        job.prolog.wait(60)
        if who != "leads":  # what that one leaves is for the next one to remove
            failed(node, 1, node.task(1), "Interrupted", "was killed by signal 9")
            job.check_thrown_away()
    job.check_next()
