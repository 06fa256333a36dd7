"""With Slurm: a throwaway cluster, jobs of ordinary users, and a real registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from tests.demo.place import CACHE_SIZE, RATE_BYTES_PER_S, Job, Place, script
from tests.parts.relay import Throttle
from tests.parts.site import Site
from tests.parts.slurmclient import USERS


class SlurmPlace(Place):
    """slurmctld, three slurmd and munge, a registry behind a slow link."""

    def __init__(self) -> None:
        self._site = Site(nodes=len(self.nodes))
        self._submitted = 0

    def __enter__(self) -> Self:
        self._site.__enter__()
        target = ("127.0.0.1", self._site.registry.port)
        self._link = Throttle(target, bytes_per_s=RATE_BYTES_PER_S)
        self._link.__enter__()
        host = self._link.host
        self._site.configure(
            f"[cache]\nmax_size = {CACHE_SIZE}\n[registry {host}]\ninsecure = yes\n"
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._link.__exit__()
        self._site.__exit__(*error)

    def describe(self) -> str:
        version = self._site.cluster.run(["slurmctld", "-V"]).stdout.strip()
        return (
            f"A throwaway Slurm runs on this host: {version}, nodes {', '.join(self.nodes)}.\n"
            "Images: a real registry on loopback."
        )

    def publish(self, image: Path, name: str) -> str:
        self._site.registry.push_sif(image, f"demo/{name}", "1.0")
        return f"oras://{self._link.host}/demo/{name}:1.0"

    def downloads(self, name: str) -> int:
        prefix = f"/v2/demo/{name}/blobs/sha256:"
        asked = self._site.registry.requests()
        return sum(1 for r in asked if r.method == "GET" and r.path.startswith(prefix))

    def submit(self, title: str, comment: str, *, nodes: list[str]) -> Job:
        user = USERS[self._submitted % len(USERS)]
        self._submitted += 1
        options = (f"--comment={comment}", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}")
        number = self._site.cluster.sbatch(
            script(self._site.read_image, "srun"), *options, user=user
        )
        return _SlurmJob(f"{title} ({user}'s job {number})", nodes, self._site, number)

    def hpcimg(self, node: str, *arguments: str) -> str:
        return self._site.node(node).hpcimg(*arguments).stdout

    def status(self, node: str) -> dict[str, Any]:
        return self._site.status(node)

    def drained(self) -> list[str]:
        states = self._site.cluster.node_states()
        return [f"{node} is {state}" for node, state in states.items() if "drain" in state]


class _SlurmJob(Job):
    def __init__(self, title: str, nodes: list[str], site: Site, number: int) -> None:
        super().__init__(title, nodes)
        self._site = site
        self._number = number

    def state(self) -> str:
        return self._site.cluster.job(self._number)["JobState"]

    def output(self) -> str:
        return self._site.cluster.output(self._number)
