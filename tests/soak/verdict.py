"""What must hold for every job of a soak, and for the nodes after it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from tests.faults.invariants import check_images, check_no_jobs, check_no_leftovers
from tests.parts.daemon import wait_until
from tests.parts.processes import users_of
from tests.parts.registry import PASSWORD
from tests.parts.site import Site
from tests.soak.plan import Job

_IMAGE = re.compile(r"^image (n\d+) (\w+) (.*)$", re.MULTILINE)
_SHARED = re.compile(r"^shared n\d+ (\S+)$", re.MULTILINE)
_SENTENCE = re.compile(r"^hpcimg: (.*)$", re.MULTILINE)
_KINDS = (
    "was killed by signal", "it was killed", "was not ready in time", "is unavailable now",
    "has no room", "was interrupted", "could not be read",
)  # fmt: skip
_INTERRUPTED = "Prolog was interrupted on node"


def failures_by_job(site: Site) -> dict[str, list[dict[str, str]]]:
    """Return the failures that the nodes recorded."""
    found: dict[str, list[dict[str, str]]] = {}
    for name in site.cluster.nodes:
        for path in site.node(name).state.glob("events*.jsonl"):
            for line in path.read_text().splitlines():
                event = json.loads(line)
                if event["event"] == "failed":
                    found.setdefault(event["job"], []).append(event)
    return found


class Verdict:
    """Judges jobs. `ends` counts how they ended; `wrong` lists what must not happen."""

    def __init__(
        self, *, failures: Mapping[str, list[dict[str, str]]], cancelled: Collection[int],
        guesses: Collection[str], kills: int,
    ) -> None:  # fmt: skip
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._failures = failures
        self._cancelled = cancelled
        self._guesses = set(guesses)
        self._kills = kills

    def judge(self, number: int, job: Job, state: str, output: str) -> None:
        """Judge a job by how it ended and what it printed."""
        end, wrong = self._end(number, job, state, output)
        self.ends[end] += 1
        wrong += re.findall(r"^violation: .*$", output, re.MULTILINE)
        wrong += [f"{name} is seen by all" for name in _SHARED.findall(output)
                  if name in self._guesses]  # fmt: skip
        for node, name, text in _IMAGE.findall(output):
            right = name in job.images and text in job.images[name].texts
            if not right and number not in self._cancelled:
                wrong.append(f"on {node} image {name} says {text!r}")
        if PASSWORD in output:
            wrong.append("a password is in the output")
        self.wrong += [
            f"job {number} of {job.user}, {job.comment!r}, {state}: {what}\n{output}"
            for what in wrong
        ]

    def _end(self, number: int, job: Job, state: str, output: str) -> tuple[str, list[str]]:
        if state == "CANCELLED":
            return "cancelled", [] if number in self._cancelled else ["nobody cancelled it"]
        if state == "COMPLETED":
            return "completed", self._incomplete(job, output)
        sentences = _SENTENCE.findall(output)
        if state != "FAILED" or not sentences:
            return "silent", ["it does not say why"]
        ends = [self._class(number, job, sentence) for sentence in sentences]
        return ends[0], [f"a failure of class {end}" for end in ends if end.startswith("?")]

    def _incomplete(self, job: Job, output: str) -> list[str]:
        wrong = []
        if job.refused:
            wrong.append(f"it got {', '.join(image.name for image in job.refused)}")
        found = Counter(name for _, name, _ in _IMAGE.findall(output))
        if found != dict.fromkeys(job.images, job.nodes):
            wrong.append("it did not look at all of its images")
        return wrong

    def _class(self, number: int, job: Job, sentence: str) -> str:
        """Return the class of failure that a message is about, or "?" and why it must not occur."""
        if sentence.startswith(_INTERRUPTED):
            return "a killed Prolog" if self._kills else "? nothing was killed"
        if any(image.refused in sentence for image in job.refused):
            return "refused"
        for event in self._failures.get(str(number), []):
            if event["message"] == sentence:
                if event["class"] == "transient":
                    return f"transient, {_kind(sentence)}"
                return f"? {event['class']}"
        return "? not recorded"


def _kind(sentence: str) -> str:
    """Return the cause of a transient failure in a few words, for counting."""
    for words in _KINDS:
        if words in sentence:
            return words
    return sentence


def check_nodes(site: Site, *, limit_bytes: int, guesses: Collection[str]) -> Counter[str]:
    """Check the nodes after one `hpcimg gc`; return the sums of their counters."""
    assert set(site.cluster.node_reasons().values()) == {"none"}
    assert set(site.cluster.node_states().values()) == {"idle"}
    wait_until(lambda: not users_of(site.directory), timeout_s=20, what="the end of all processes")
    counts: Counter[str] = Counter()
    for name in site.cluster.nodes:
        node = site.node(name)
        counts["ended jobs for gc"] += len(node.hpcimg_json("gc")["ended_jobs"])
        check_images(node)
        check_no_leftovers(node)
        check_no_jobs(node)
        seen = node.hpcimg_json("status")
        assert seen["problems"] == []
        assert seen["staging"] == []
        assert seen["cache"]["bytes"] <= limit_bytes, seen["cache"]
        assert _stored(node.cache) <= limit_bytes, seen["cache"]
        for_all = [path.name for path in node.cache.glob("[ib]*/*")]
        assert not set(for_all) & set(guesses)
        counts.update(seen["counts"])
    for path in [
        *site.directory.glob("n*/hpcimg.log"),
        *(site.cluster.directory / "log").iterdir(),
    ]:
        text = path.read_text(errors="replace")
        assert "Traceback" not in text, f"{path}: {text[text.index('Traceback') - 300 :][:3000]}"
        assert PASSWORD not in text, path
    return counts


def stored_bytes(cache: Path) -> int:
    """Return the bytes in a cache's directories, including unfinished work."""
    return _stored(cache, "tmp", "work")


def _stored(cache: Path, *more: str) -> int:
    total = 0
    for name in ("images", "users", "blobs", *more):
        for directory, _, files in os.walk(
            cache / name
        ):  # which goes on where a directory disappears
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(f"{directory}/{file}").st_blocks * 512
    return total
