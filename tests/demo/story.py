"""The story of the demo, and what must hold at each step."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hpcimg.cli.output import bar
from hpcimg.units import format_size
from tests.demo.place import HELLO, RATE_BYTES_PER_S, SIZE_BYTES, Job, Place, make_image

_TIMEOUT_S = 60


class Story:
    """Runs the story at a Place; `wrong` lists what was not as expected."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.wrong: list[str] = []
        self._seen_progress = False

    def tell(self) -> None:
        """Run the whole story."""
        print(self.place.describe())
        with tempfile.TemporaryDirectory() as directory:
            self._first = self._publish(Path(directory), "first")
            self._second = self._publish(Path(directory), "second")
        self._before()
        self._together()
        self._warm()
        self._evict()

    def _publish(self, directory: Path, name: str) -> str:
        image = make_image(directory / f"{name}.sif")
        return self.place.publish(image, name)

    def _before(self) -> None:
        _title("Before: hpcimg status on n1")
        print(self.place.hpcimg("n1", "status"))
        self._expect(self.place.status("n1")["cache"]["images"] == 0, "n1 is empty at first")

    def _together(self) -> None:
        _title(
            "Four jobs on n1 and one across n2 and n3, all at once, with\n"
            f"  #SBATCH --comment=container:{self._first}\n"
            "and one that names an image that is not there"
        )
        print(
            f"The image has {format_size(SIZE_BYTES)}, "
            f"the link to the registry {format_size(RATE_BYTES_PER_S)}/s.\n"
        )
        comment = f"container:{self._first}"
        jobs = [
            self.place.submit(f"job {number} of 4 on n1", comment, nodes=["n1"])
            for number in (1, 2, 3, 4)
        ]
        jobs.append(self.place.submit("the job on n2 and n3", comment, nodes=["n2", "n3"]))
        missing = self._first.replace("first", "frist")
        lost = self.place.submit(
            "the job with a typing error", f"container:{missing}", nodes=["n2"]
        )
        self._watch([*jobs, lost])
        for job in jobs:
            _show(job)
            self._expect(job.state() == "COMPLETED", f"{job.title} completes")
            read = job.output().count(HELLO)
            self._expect(read == len(job.nodes), f"{job.title} reads its image on each node")
        _show(lost)
        self._expect(lost.state() == "FAILED", "the job with a typing error fails")
        self._expect("there is nothing at" in lost.output(), "it says why in its own output")
        self._expect(self._seen_progress, "progress is seen while the jobs are held")
        count = self.place.downloads("first")
        print(f"\nDownloads of the image: {count}, one on each of 3 nodes.")
        self._expect(count == 3, "there is one download for each node")
        drained = self.place.drained()
        print(f"Nodes drained: {', '.join(drained) or 'none'}.")
        self._expect(not drained, "no node is drained")

    def _warm(self) -> None:
        _title("The same image again on n1: a warm hit, no request to anybody")
        before = self.place.downloads("first")
        job = self.place.submit("the fifth job on n1", f"container:{self._first}", nodes=["n1"])
        self._watch([job])
        _show(job)
        self._expect(job.state() == "COMPLETED", "the warm job completes")
        self._expect(self.place.downloads("first") == before, "nothing was downloaded for it")
        self._expect(self.place.status("n1")["counts"].get("hit", 0) >= 1, "it is counted as a hit")

    def _evict(self) -> None:
        _title("Another image on n1, whose cache has no room for two: the older one goes")
        print(self.place.hpcimg("n1", "ls"))
        job = self.place.submit(
            "the job with the other image", f"container:{self._second}", nodes=["n1"]
        )
        self._watch([job])
        _show(job)
        print(self.place.hpcimg("n1", "ls"))
        print(self.place.hpcimg("n1", "status"))
        status = self.place.status("n1")
        self._expect(job.state() == "COMPLETED", "the job with the other image completes")
        self._expect(status["counts"].get("evict") == 1, "one image was evicted")
        self._expect(status["cache"]["images"] == 1, "one image is left on n1")
        self._expect(not status["jobs"], "no job holds a lease any more")

    def _watch(self, jobs: list[Job]) -> None:
        """Show progress until all jobs have ended."""
        until = time.monotonic() + _TIMEOUT_S
        shown, status_shown = "", self._seen_progress
        while not all(job.ended() for job in jobs):
            if time.monotonic() > until:
                states = ", ".join(f"{job.title} {job.state()}" for job in jobs)
                self.wrong.append(f"not all jobs ended in {_TIMEOUT_S} s: {states}")
                return
            works = [
                (n, work) for n in self.place.nodes for work in self.place.status(n)["staging"]
            ]
            half = [node for node, work in works if work["bytes"] > SIZE_BYTES / 2]
            if half and not status_shown:
                print(f"\n{self.place.hpcimg(half[0], 'status')}")
                status_shown = True
            line = "   ".join(_work(node, work) for node, work in works if work["total"])
            if line and line != shown:
                print(f"  {line}", flush=True)
                shown = line
                self._seen_progress = True
            time.sleep(0.3)  # a person watches

    def _expect(self, true: bool, what: str) -> None:
        if not true:
            self.wrong.append(f"it was to be seen that {what}")


def _title(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}")


def _show(job: Job) -> None:
    print(f"{job.title}: {job.state()}")
    for line in job.output().splitlines():
        print(f"    {line}")


def _work(node: str, work: dict[str, Any]) -> str:
    return f"{node} {bar(work['bytes'], work['total'], width=12)}"
