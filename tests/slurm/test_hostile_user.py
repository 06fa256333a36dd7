"""A hostile user's jobs beside another user's, on a real cluster that may drain its nodes.

HPCIMG_HOSTILE_JOBS and HPCIMG_HONEST_JOBS say how many there are of each (`make test-hostile`: 50
and 200), HPCIMG_HOSTILE_SEED repeats the choices of a run, though not the moments.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.invariants import check_images, check_no_jobs, check_no_leftovers
from tests.parts import hungmount
from tests.parts.daemon import wait_until
from tests.parts.images import make_sif
from tests.parts.layouts import config_of, in_blobs, write_archive
from tests.parts.node import Node
from tests.parts.ociimages import make_layer, push_image
from tests.parts.processes import users_of
from tests.parts.site import Site
from tests.parts.slurmclient import ENDED, USERS
from tests.parts.users import Homes
from tests.parts.webregistry import put_sif
from tests.parts.webserver import WebServer
from tests.slurm import hostile
from tests.slurm.hostile import ATTACKS, MIB, Attempt, Ground

HOSTILE = int(os.environ.get("HPCIMG_HOSTILE_JOBS") or len(ATTACKS))
HONEST = int(os.environ.get("HPCIMG_HONEST_JOBS") or HOSTILE)
SEED = int(os.environ.get("HPCIMG_HOSTILE_SEED") or random.SystemRandom().randrange(10**6))
ATTACKER, OTHER = USERS[:2]
CACHE = 24 * MIB
BLOCK = 8192  # what a file may take on the disk besides its bytes
DEADLINE_S, PATIENCE_S = 15, 2
# By what others hold up a job twice is waited for patiently, and then hardly any more: the floor.
# What an undisturbed fetch and conversion take on a busy machine comes on top.
WAIT_S = 2 * PATIENCE_S + 6
SETTINGS = f"""
[cache]
max_size = {CACHE}
[stage]
deadline = {DEADLINE_S}s
patience = {PATIENCE_S}s
connect_timeout = 2s
error_ttl = 3s
[policy]
on_node_fault = drain
max_image_size = {CACHE - MIB}
deny = http://127.0.0.1:%(web)d/denied/* *://127.0.0.1:%(web)d/denied/*
[registry 127.0.0.1:%(web)d]
insecure = yes
"""
MISSING = Site.missing() or Homes.missing()
pytestmark = [
    pytest.mark.skipif(MISSING != "", reason=MISSING),
    pytest.mark.timeout(240 + 6 * (HOSTILE + HONEST)),
]


class Image(NamedTuple):
    """An image of the other user's: what is written for it, what its file "hello" says.

    `sha256` is of the whole file, "" where it is made on the node.
    """

    comment: str
    says: str
    sha256: str = ""


class Fight:
    """All jobs of a run; `attempts` and `honest` have them by their numbers.

    `leaves` ends what the hostile user has running outside of jobs.
    """

    def __init__(self, on: Ground, images: list[Image], leaves: ExitStack) -> None:
        self.on = on
        self.leaves = leaves
        self.site = on.site
        self.images = images
        self.attempts: dict[int, tuple[str, Attempt]] = {}
        self.honest: dict[int, Image] = {}
        self.states: dict[int, str] = {}
        self._choose = random.Random(SEED)

    def attack(self, number: int) -> None:
        """Submit the next attack of the hostile user, and the other user's job that it aims at."""
        name, site = self.site.cluster.nodes[number % 2], self.site
        victim = make_sif(site.directory / "victim.sif", {"hello": b"victim %d\n" % number})
        self.on.victim = victim.read_bytes()
        digest = hashlib.sha256(self.on.victim).hexdigest()
        function = ATTACKS[number % len(ATTACKS)]
        attempt = function(self.on, SEED + number)
        if attempt is None:
            return
        job = site.cluster.sbatch(
            attempt.script,
            f"--nodelist={name}",
            *([f"--comment={attempt.comment}"] if attempt.comment else []),
            *attempt.options,
            user=ATTACKER,
        )
        self.attempts[job] = function.__name__, attempt
        if attempt.asks:
            with contextlib.suppress(TimeoutError):  # where many are in front of it
                site.web.wait_count(1, path=attempt.asks)
        comment = put_sif(site.web, f"lab/{number}", self.on.victim)
        self._submit(Image(comment, f"victim {number}", digest), f"--nodelist={name}")

    def ordinary(self) -> None:
        """Let the other user submit a job."""
        self._submit(self._choose.choice(self.images))

    def _submit(self, image: Image, *options: str) -> None:
        look = f'{self.site.read_image} "$HPCIMG_IMAGE" hello && sha256sum "$HPCIMG_IMAGE"'
        script = f"{look} && sleep 0.5 && {look}"
        comment = f"--comment={image.comment}"
        self.honest[self.site.cluster.sbatch(script, comment, *options, user=OTHER)] = image

    def wait(self) -> None:
        """Wait for all jobs of both."""

        def ended() -> bool:
            argv = ["squeue", "--noheader", "--states=all", "--format=%i %T"]
            lines = self.site.cluster.run(argv).stdout.splitlines()
            self.states = {int(job): state for job, state in map(str.split, lines)}
            return set(self.states.values()) <= ENDED

        wait_until(ended, timeout_s=120 + 5 * len(self.attempts), what="all jobs")


@pytest.fixture
def fight() -> Iterator[Fight]:
    print(f"HPCIMG_HOSTILE_SEED={SEED}")
    with ExitStack() as stack:
        # Before the cluster, whose nodes have a list of mounts of their own.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-")))
        directory.chmod(0o755)
        uid = pwd.getpwnam(ATTACKER).pw_uid
        leaves = stack.enter_context(ExitStack())
        try:
            hung: Path | None = leaves.enter_context(hungmount.mounted(directory, uid, gid=uid))
        except OSError:
            hung = None
        tls = stack.enter_context(WebServer(tls=True))
        tls.certificate.parent.chmod(0o755)
        site = stack.enter_context(
            Site(
                nodes=2,
                users=USERS,
                extra_conf="MinJobAge=86400",
                variables={"REQUESTS_CA_BUNDLE": str(tls.certificate)},
            )
        )
        site.configure(SETTINGS % {"web": site.web.port})
        site.web.put("/denied/x.sif", site.image("denied").read_bytes())
        if hung:
            (site.homes.home(ATTACKER) / ".docker").symlink_to(hung)
        base, top = make_layer({"base": os.urandom(MIB)}), make_layer({"hello": b"archive\n"})
        mine = directory / "mine"
        mine.mkdir()
        shutil.chown(mine, ATTACKER)
        on = Ground(site, tls, mine, uid, hung, (base, top), CACHE)
        leaves.enter_context(hostile.at_work(on))
        yield Fight(on, images_of(site, on), leaves)


def images_of(site: Site, on: Ground) -> list[Image]:
    """Make the other user's images: of each kind, shared and private."""

    def sif(name: str) -> tuple[Path, str]:
        path = site.image(name)
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    made = []
    for number in range(3):
        path, digest = sif(f"private-{number}")
        path.chmod(0o600)
        shutil.chown(path, OTHER)
        made.append(Image(f"container:{path}", f"private-{number}", digest))
        path, digest = sif(f"web-{number}")
        address = site.web.put(f"/web-{number}.sif", path.read_bytes(), etag='"1"')
        made.append(Image(f"container:{address}", f"web-{number}", digest))
    path = site.directory / "archive.tar"
    files = {in_blobs(layer): layer.data for layer in on.layers}
    comment = write_archive(path, files, config=config_of(*on.layers))
    made.append(Image(comment, "archive"))
    for number in range(2):
        layers = [on.layers[0], make_layer({"hello": b"docker %d\n" % number})]
        push_image(site.registry, f"lab/docker-{number}", "1", layers)
        comment = f"container:docker://{site.registry.host}/lab/docker-{number}:1"
        made.append(Image(comment, f"docker {number}"))
    return made


def test_nothing_of_the_other_users_is_touched(fight: Fight) -> None:
    site, began = fight.site, time.monotonic()
    for number in range(HOSTILE):
        fight.attack(number)
        while len(fight.honest) < HONEST * (number + 1) // HOSTILE:
            fight.ordinary()
    fight.wait()
    print(f"{len(fight.attempts)} + {len(fight.honest)} jobs: {time.monotonic() - began:.0f} s")
    assert set(site.cluster.node_reasons().values()) == {"none"}
    wrong = [*wrong_with_honest(fight), *wrong_with_attacks(fight)]
    assert not wrong, "\n".join(wrong)
    assert not list(site.directory.glob("escaped*"))
    assert not [request.path for request in site.web.log if "denied/x" in request.path]
    fight.leaves.close()
    wait_until(
        lambda: set(site.cluster.node_states().values()) == {"idle"},
        what="all nodes to be idle",
    )
    wait_until(lambda: not users_of(site.directory), what="the end of all processes")
    for name in site.cluster.nodes:
        check_node(site.node(name), fight)


def wrong_with_attacks(fight: Fight) -> list[str]:
    """Return the successes of hostile jobs, and the jobs that did not end as they must."""
    wrong = []
    for job, (name, attempt) in fight.attempts.items():
        state, said = fight.states[job], fight.site.cluster.output(job)
        if attempt.ends not in ("", state) or "violation" in said or "Traceback" in said:
            wrong.append(f"{name}, job {job}, {attempt.comment!r}: {state}\n{said}")
    return wrong


def wrong_with_honest(fight: Fight) -> list[str]:
    """Return the jobs of the other user that did not get their own image, or waited too long."""
    wrong, took = [], staging_times(fight.site)
    for job, image in fight.honest.items():
        state, said = fight.states[job], fight.site.cluster.output(job).splitlines()
        files = {line.partition(" ")[0] for line in said[1::2]}
        right = state == "COMPLETED" and len(said) == 4 and said[::2] == [image.says] * 2
        if not right or len(files) != 1 or image.sha256 not in ("", *files):
            wrong.append(f"job {job}, {image}: {state}\n" + "\n".join(said))
        if took.get(job, 0.0) > WAIT_S:
            wrong.append(f"job {job}, {image.comment} took {took[job]} s")
    longest = max(took[job] for job in fight.honest if job in took)
    print(f"the other user's images took {longest} s at the most")
    return wrong


def staging_times(site: Site) -> dict[int, float]:
    """Return how long jobs were held, by the nodes' records, without cache hits."""
    found = {}
    for name in site.cluster.nodes:
        for line in (site.node(name).state / "events.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event.get("job") and "took_s" in event:
                found[int(event["job"])] = float(event["took_s"])
    return found


def check_node(node: Node, fight: Fight) -> None:
    """Check that a node is in order, and its cache as large as it reports."""
    check_images(node)
    check_no_jobs(node)
    check_no_leftovers(node)
    trash = node.cache / "trash"
    wait_until(lambda: not any(trash.iterdir()), what="an empty trash")
    for number in range(3):
        private = fight.images[2 * number]
        for path in node.cache.glob(f"users/*/*{private.sha256}*"):
            assert (path.stat().st_uid, path.parent.name) == (0, str(pwd.getpwnam(OTHER).pw_uid))
    status = node.hpcimg_json("status")
    assert (status["staging"], status["jobs"], status["problems"]) == ([], {}, [])
    on_disk, files = used(node.cache)
    assert status["cache"]["bytes"] <= CACHE
    assert on_disk <= status["cache"]["bytes"] + files * BLOCK
    assert used(node.state)[0] < MIB
    doctor = node.hpcimg("doctor")
    assert "PROBLEM" not in doctor.stdout, doctor.stdout
    assert "Traceback" not in node.log()


def used(top: Path) -> tuple[int, int]:
    """Return the bytes that a directory takes on the disk, and the number of its files."""
    seen = [path.lstat() for path in (top, *top.rglob("*"))]
    return sum(each.st_blocks * 512 for each in seen), len(seen)
