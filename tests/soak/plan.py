"""What the jobs of a soak request, and what happens to them: determined by the seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from tests.parts.slurmclient import USERS
from tests.soak.pool import Image

NAMES = ("A", "B", "C")  # of a job's images, in its environment


class Job(NamedTuple):
    """One job: its user, its images by the names it gives them, how many nodes it runs on."""

    user: str
    images: dict[str, Image]
    nodes: int
    sleep_s: float

    @property
    def comment(self) -> str:
        """The comment that requests its images."""
        words = (f"container:{name}={image.text_of_comment}" for name, image in self.images.items())
        return "; ".join(words)

    @property
    def refused(self) -> list[Image]:
        """The images that it must not get."""
        return [image for image in self.images.values() if self.user not in image.readers]


class Accident(NamedTuple):
    """What happens after a job was submitted, `after_s` seconds later."""

    what: str
    after_s: float


# How many of a hundred jobs are followed by each of these.
ACCIDENTS = {
    "a fault of the web server": 80,
    "a new version": 12,
    "kill a worker": 10,
    "kill a tool": 3,
    "kill a Prolog": 5,
    "kill an Epilog": 2,
    "scancel": 6,
    "a registry's outage": 3,
}


def plan_job(choose: random.Random, images: Sequence[Image]) -> Job:
    """Choose what a job requests; in four of five cases only what it is allowed to have."""
    user = choose.choice(USERS)
    wanted = images
    if choose.random() < 0.8:
        wanted = [image for image in images if user in image.readers]
    chosen = choose.sample(list(wanted), choose.choice((1, 1, 2, 3)))
    return Job(
        user=user,
        images=dict(zip(NAMES, chosen, strict=False)),
        nodes=choose.choices((1, 2), (9, 1))[0],
        sleep_s=choose.choice((0, 0, 1, 5)),
    )


def plan_accidents(choose: random.Random) -> list[Accident]:
    """Choose what happens after a job's submission."""
    return [
        Accident(what, choose.uniform(0, 3))
        for what, of_hundred in ACCIDENTS.items()
        if choose.random() * 100 < of_hundred
    ]
