"""Hundreds of jobs of several users on a real cluster, while everything around them goes wrong.

HPCIMG_SOAK_JOBS says how many jobs there are (`make test-soak`: 500), HPCIMG_SOAK_SEED repeats
the choices of a run: what the jobs ask for and what is done to them, though not the moments.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hpcimg.cache.room import FIRST_BYTES
from tests.parts.daemon import wait_until
from tests.parts.node import ROOT
from tests.parts.registry import Registry
from tests.parts.registryclient import auth_file
from tests.parts.site import Site
from tests.parts.slurmclient import ENDED, USERS
from tests.parts.slurmconf import CPUS
from tests.parts.users import Homes
from tests.soak.plan import Job, plan_accidents, plan_job
from tests.soak.pool import LIMIT, MIB, Pool
from tests.soak.trouble import Trouble
from tests.soak.verdict import Verdict, check_nodes, failures_by_job, stored_bytes

JOBS = int(os.environ.get("HPCIMG_SOAK_JOBS", "25"))
SEED = int(os.environ.get("HPCIMG_SOAK_SEED") or random.SystemRandom().randrange(10**6))
CACHE = 12 * MIB
# The number of jobs at the same time; more than the nodes have room for.
AT_ONCE = 20
SETTINGS = f"""
[cache]
max_size = {CACHE}
high_watermark = 90%
low_watermark = 60%
min_age = 0s
[stage]
deadline = 60s
tag_ttl = 5s
error_ttl = 3s
connect_timeout = 2s
stall_timeout = 2s
[policy]
max_image_size = {LIMIT}
"""
# slurmctld keeps its records of ended jobs until the end.
SLURM = "MinJobAge=86400"
MISSING = Site.missing() or Homes.missing()
pytestmark = [
    pytest.mark.skipif(MISSING != "", reason=MISSING),
    pytest.mark.timeout(240 + 6 * JOBS),
]


class Soak:
    """The jobs of one run, submitted and watched."""

    def __init__(self, site: Site, private: Registry) -> None:
        self.site = site
        # A generator for each: when the others are used depends on timing.
        self.choose = random.Random(SEED)
        self.jobs: dict[int, Job] = {}
        self.states: dict[int, str] = {}
        self.peak = 0
        self.pool = Pool(site, private, random.Random(SEED))
        registries = (site.registry, private)
        self.trouble = Trouble(site, self.pool, registries, random.Random(SEED), self.active)

    def active(self) -> list[int]:
        """Return the jobs that have not ended, as of the last look."""
        return [job for job in self.jobs if self.states.get(job) not in ENDED]

    def look(self) -> None:
        """Ask Slurm for the jobs' states, and look how full the caches are."""
        argv = ["squeue", "--noheader", "--states=all", "--format=%i %T"]
        lines = self.site.cluster.run(argv).stdout.splitlines()
        self.states.update((int(job), state) for job, state in map(str.split, lines))
        for name in self.site.cluster.nodes:
            self.peak = max(self.peak, stored_bytes(self.site.node(name).cache))

    def submit(self) -> None:
        """Submit one more job."""
        job = plan_job(self.choose, self.pool.images)
        directory = self.site.directory
        check = f"{directory}/check-images.sh {directory} {job.sleep_s} {' '.join(job.images)}"
        number = self.site.cluster.sbatch(
            f"srun {check}" if job.nodes > 1 else check,
            f"--comment={job.comment}",
            f"--nodes={job.nodes}",
            user=job.user,
        )
        self.jobs[number] = job
        self.trouble.expect(plan_accidents(self.choose))

    def until(self, at_most: int, *, timeout_s: float) -> None:
        """Let accidents happen until at most this many jobs are left."""
        next_look = 0.0

        def few() -> bool:
            nonlocal next_look
            self.trouble.step()
            if time.monotonic() < next_look:
                return False
            next_look = time.monotonic() + 0.3
            self.look()
            return len(self.active()) <= at_most

        wait_until(few, timeout_s=timeout_s, what=f"all but {at_most} of {len(self.active())} jobs")


@pytest.fixture
def soak() -> Iterator[Soak]:
    print(f"HPCIMG_SOAK_SEED={SEED} HPCIMG_SOAK_JOBS={JOBS}")
    with ExitStack() as stack:
        private = stack.enter_context(Registry(basic=True))
        site = stack.enter_context(Site(nodes=3, extra_conf=SLURM, users=USERS))
        site.configure(f"{SETTINGS}[registry {private.host}]\ninsecure = yes\n")
        for user in USERS[:2]:
            site.homes.keep(user, ".docker/config.json", auth_file(private.host))
        script = site.directory / "check-images.sh"
        script.write_text((ROOT / "tests" / "soak" / script.name).read_text())
        script.chmod(0o755)
        soak = Soak(site, private)
        guesses = site.directory / "private"
        uids = site.homes.users.values()
        lines = [f"{uid} u{uid}-{name}\n" for uid in uids for name in soak.pool.guesses]
        guesses.write_text("".join(lines))
        guesses.chmod(0o644)
        yield soak


def test_all_jobs_get_what_is_theirs_or_are_told_why(soak: Soak) -> None:
    began = time.monotonic()
    for _ in range(JOBS):
        soak.until(AT_ONCE - 1, timeout_s=180)
        soak.submit()
    soak.until(0, timeout_s=300)
    took = time.monotonic() - began
    soak.trouble.end()
    site, trouble = soak.site, soak.trouble
    verdict = Verdict(
        failures=failures_by_job(site),
        cancelled=trouble.cancelled,
        guesses=soak.pool.guesses,
        kills=trouble.done["kill a Prolog"] + len(trouble.cancelled),
    )
    for number, job in soak.jobs.items():
        verdict.judge(number, job, soak.states[number], site.cluster.output(number))
    wait_until(
        lambda: set(site.cluster.node_states().values()) == {"idle"},
        timeout_s=60,
        what="all nodes to be idle",
    )
    figures: dict[str, object] = {
        "seconds": round(took),
        "peak of a cache": soak.peak,
        "ends": verdict.ends,
        "accidents": trouble.done,
    }
    print(json.dumps(figures, indent=1))
    assert verdict.wrong == [], "\n".join(verdict.wrong)
    counts: Counter[str] = check_nodes(site, limit_bytes=CACHE, guesses=soak.pool.guesses)
    print(json.dumps({"counts": counts, "web requests": site.web.count()}, indent=1))
    # So much of each job's fetch arrives before room is made for it.
    assert soak.peak <= CACHE + CPUS * FIRST_BYTES
    # It was a soak, not an outage; a few jobs may be too few to say.
    if JOBS >= 100:
        assert verdict.ends["completed"] > JOBS / 5
        assert counts["evict"] > 0
