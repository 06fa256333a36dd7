"""The demo's own checks, on a real Slurm."""

from __future__ import annotations

import pytest

from tests.demo.slurm import SlurmPlace
from tests.demo.story import Story
from tests.parts.site import Site

pytestmark = pytest.mark.skipif(bool(Site.missing()), reason=Site.missing())


def test_the_demo_finds_nothing_wrong() -> None:
    with SlurmPlace() as place:
        story = Story(place)
        story.tell()
    assert story.wrong == []
