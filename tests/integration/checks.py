"""Checks that many tests make after a hook has run, and how they let time pass."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from tests.integration.conftest import Start
from tests.parts.daemon import TIMEOUT_S, wait_until
from tests.parts.node import Node, Task


def staged(node: Node, job: int, comment: str | None, *images: bytes, how: str = "") -> Task:
    """Stage, and check that the job got exactly these images, and nothing is left over."""
    return got(node, job, node.stage(job, comment), *images, how=how)


def got(node: Node, job: int, task: Task, *images: bytes, how: str = "") -> Task:
    """Check that a job got exactly these images, with leases, and nothing is left over."""
    assert task.code == 0, (task.printed, node.log())
    paths = task.exports["HPCIMG_IMAGES"].split(":")
    assert task.exports["HPCIMG_IMAGE"] == paths[0]
    for path, data in zip(paths, images, strict=True):
        with open(path, "rb") as file:
            assert file.read() == data
    record = node.record(job)
    assert record["state"] == "ready"
    assert [image["path"] for image in record["images"]] == paths
    if how:
        assert {image["source"] for image in record["images"]} == {how}
    assert {(image["key"], str(job)) for image in record["images"]} <= node.leases()
    assert node.leftovers() == []
    return task


def refused(node: Node, job: int, comment: str, error: str, *words: str) -> Task:
    """Stage, and check that the job fails with these words in its own output."""
    return failed(node, job, node.stage(job, comment), error, *words)


def failed(node: Node, job: int, task: Task, error: str, *words: str) -> Task:
    """Check that a job failed with an error of this class and these words; nothing is left."""
    assert task.code == 1, (task, node.log())
    assert task.exports == {}
    assert task.printed.startswith("hpcimg: ")
    for word in words:
        assert word in task.printed
    record = node.record(job)
    assert (record["state"], record["error"]) == ("failed", error)
    assert record["message"] == task.printed.removeprefix("hpcimg: ")
    assert "Traceback" not in node.log()
    assert node.leftovers() == []
    return task


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a Prolog, which must exit with 0 and print nothing."""
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, output) == (0, "")


def together(start: Start, node: Node, *comments: str) -> dict[int, Task]:
    """Run a Prolog for each comment at once, as jobs 1, 2 and so on; return their tasks."""
    prologs = {job: start(node, job, comment) for job, comment in enumerate(comments, start=1)}
    for prolog in prologs.values():
        finish(prolog)
    return {job: node.task(job) for job in prologs}


def wait_for_log(node: Node, *words: str, but: int = 0, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until all of these texts, or all but a number of them, are in the log."""

    def logged() -> bool:
        log = node.log()
        return sum(word in log for word in words) >= len(words) - but

    wait_until(logged, timeout_s=timeout_s, what=f"{words} in the log")


def let_pass(node: Node, seconds: float) -> None:
    """Make everything that hpcimg remembers so many seconds older; younger if negative.

    As if time had passed, or the clock had been set: nobody has to wait.
    """
    for path in node.cache.glob("refs/*.json"):
        fields: dict[str, Any] = json.loads(path.read_text())
        fields["resolved"] -= seconds
        fields["grace"] -= seconds
        path.write_text(json.dumps(fields))
    for path in node.cache.glob("meta/*.json"):
        used = path.stat().st_mtime - seconds
        os.utime(path, (used, used))
    for path in node.state.glob("failures/*"):
        fields = json.loads(path.read_text())
        fields["time"] -= seconds
        path.write_text(json.dumps(fields))
    for path in node.state.glob("hot/*/*"):
        lines = path.read_text().split("\n")
        lines[1:3] = [repr(float(line) - seconds) for line in lines[1:3]]
        path.write_text("\n".join(lines))
