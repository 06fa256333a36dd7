"""What goes wrong around the jobs of a soak: failing servers, killed processes, cancelled jobs."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.parts.registry import Registry
from tests.parts.site import Site
from tests.parts.webanswer import Fault
from tests.parts.webfaults import Reset, Slow, Stall, Status, Truncate
from tests.soak.plan import Accident
from tests.soak.pool import MIB, Pool

# How long a victim is searched for, in seconds.
_LOOK_FOR_S = 20
# Marks in the arguments of processes to kill. Never a hook's shell: that would drain the node.
_MARKS = {
    "kill a worker": re.compile(r"hpcimg\.child"),
    "kill a tool": re.compile(r"mksquashfs"),
    "kill a Prolog": re.compile(r"hpcimg\.slurm.*(\.prolog import|'prolog')"),
    "kill an Epilog": re.compile(r"hpcimg\.slurm.*(\.epilog import|'epilog')"),
}


class Trouble:
    """Makes accidents happen when their time comes: call `step` often, from one thread.

    `done` counts what happened, `cancelled` has the jobs that were.
    """

    def __init__(
        self,
        site: Site,
        pool: Pool,
        registries: Sequence[Registry],
        choose: random.Random,
        active: Callable[[], list[int]],
    ) -> None:
        self.done: Counter[str] = Counter()
        self.cancelled: set[int] = set()
        self._site = site
        self._pool = pool
        self._registries = registries
        self._choose = choose
        self._active = active
        self._due: list[tuple[float, Accident]] = []
        self._back: dict[Registry, float] = {}

    def expect(self, accidents: Sequence[Accident]) -> None:
        """Schedule these accidents."""
        now = time.monotonic()
        self._due += [(now + accident.after_s, accident) for accident in accidents]

    def step(self) -> None:
        """Cause the accidents that are due."""
        now = time.monotonic()
        due = [item for item in self._due if item[0] <= now]
        for item in due:
            if self._happens(item[1]):
                self.done[item[1].what] += 1
            elif now < item[0] + _LOOK_FOR_S:
                continue
            self._due.remove(item)
        for registry, when in list(self._back.items()):
            if when <= now:
                registry.start()
                del self._back[registry]

    def end(self) -> None:
        """Cause no more accidents, and undo lasting ones."""
        self._due.clear()
        for registry in self._back:
            registry.start()
        self._back.clear()
        for path in self._pool.faulty:
            self._site.web.script(path, [])

    def _happens(self, accident: Accident) -> bool:
        match accident.what:
            case "a fault of the web server":
                faults = [self._fault() for _ in range(self._choose.randrange(1, 4))]
                self._site.web.script(self._choose.choice(self._pool.faulty), faults)
            case "a new version":
                self._pool.renew()
            case "scancel":
                return self._cancel()
            case "a registry's outage":
                registry = self._choose.choice(self._registries)
                if registry.is_up:
                    registry.stop()
                    self._back[registry] = time.monotonic() + self._choose.uniform(1, 6)
            case what:
                return self._kill(_MARKS[what])
        return True

    def _fault(self) -> Fault:
        at = self._choose.randrange(2 * MIB)
        faults: list[Fault] = [
            Status(503, retry_after=self._choose.choice(("", "0", "1"))),
            Status(429, retry_after="1"),
            Truncate(at),
            Stall(5, at),
            Stall(5),
            Reset(),
            Reset(at),
            Slow(MIB / 2),
        ]
        return self._choose.choice(faults)

    def _cancel(self) -> bool:
        active = self._active()
        if not active:
            return False
        job = self._choose.choice(active)
        self.cancelled.add(job)
        self._site.cluster.scancel(job)
        return True

    def _kill(self, mark: re.Pattern[str]) -> bool:
        """Kill one of the processes of these nodes that has the mark, if there is one."""
        nodes = self._site.cluster.nodes
        for node in self._choose.sample(nodes, len(nodes)):
            found = self._site.cluster.on_node(node)
            if any(_kill_if(pid, mark) for pid in self._choose.sample(found, len(found))):
                return True
        return False


def _kill_if(pid: int, mark: re.Pattern[str]) -> bool:
    """Kill a process if its arguments contain the mark, since its PID may have been reused."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not mark.search(Path(f"/proc/{pid}/cmdline").read_text(errors="replace")):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True
