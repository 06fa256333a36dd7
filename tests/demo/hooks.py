"""Without Slurm: the hooks called as slurmd calls them, one thread for each job."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

from tests.demo.place import CACHE_SIZE, RATE_BYTES_PER_S, Job, Place, script
from tests.parts.images import READ_IMAGE
from tests.parts.node import Node
from tests.parts.relay import Throttle
from tests.parts.webserver import WebServer


class HooksPlace(Place):
    """Nodes that are directories, and a web server in place of a registry."""

    def __init__(self, directory: Path) -> None:
        self._nodes = {}
        for name in self.nodes:
            (directory / name).mkdir()
            self._nodes[name] = Node(directory / name, f"[cache]\nmax_size = {CACHE_SIZE}\n")
        self._web = WebServer()
        self._jobs: list[_HookJob] = []

    def __enter__(self) -> Self:
        self._web.__enter__()
        self._link = Throttle(("127.0.0.1", self._web.port), bytes_per_s=RATE_BYTES_PER_S)
        self._link.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs:
            job.thread.join()
        self._link.__exit__()
        self._web.__exit__(None, None, None)

    def describe(self) -> str:
        return (
            f"Nodes: {', '.join(self.nodes)}, each a directory. Images: a web server on loopback."
        )

    def publish(self, image: Path, name: str) -> str:
        self._web.put(f"/{name}.sif", image.read_bytes())
        return f"http://{self._link.host}/{name}.sif"

    def downloads(self, name: str) -> int:
        return self._web.count("GET", f"/{name}.sif")

    def submit(self, title: str, comment: str, *, nodes: list[str]) -> Job:
        hooks = [self._nodes[name] for name in nodes]
        job = _HookJob(title, nodes, 100 + len(self._jobs), comment, hooks)
        self._jobs.append(job)
        return job

    def hpcimg(self, node: str, *arguments: str) -> str:
        return self._nodes[node].hpcimg(*arguments).stdout

    def status(self, node: str) -> dict[str, Any]:
        return self._nodes[node].hpcimg_json("status")

    def drained(self) -> list[str]:
        return [f"{job.title}: a hook failed" for job in self._jobs if job.hook_failed]


class _HookJob(Job):
    """Prolog on all nodes side by side, then the script on each, then Epilog."""

    def __init__(
        self, title: str, nodes: list[str], number: int, comment: str, hooks: list[Node]
    ) -> None:
        super().__init__(title, nodes)
        self.hook_failed = False
        self._number = number
        self._comment = comment
        self._hooks = hooks
        self._state = "CONFIGURING"
        self._output = ""
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def state(self) -> str:
        return self._state

    def output(self) -> str:
        return self._output

    def _run(self) -> None:
        succeeded = False
        try:
            prologs = [node.start_prolog(self._number, self._comment) for node in self._hooks]
            for prolog in prologs:
                with prolog:
                    self.hook_failed |= prolog.wait() != 0
            succeeded = all([self._run_task(node) for node in self._hooks])  # noqa: C419  on every node
            for node in self._hooks:
                node.epilog(self._number)
        finally:
            self._state = "COMPLETED" if succeeded else "FAILED"

    def _run_task(self, node: Node) -> bool:
        task = node.task(self._number)
        self._output += task.printed
        if task.code:
            return False
        done = subprocess.run(
            ["sh", "-c", script(READ_IMAGE)],
            env={"PATH": os.defpath, **task.exports},
            capture_output=True,
            text=True,
            check=False,
        )
        self._output += done.stdout + done.stderr
        return done.returncode == 0
