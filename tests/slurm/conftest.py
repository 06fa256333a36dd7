"""A site with hpcimg for each module that needs one, and checks of what a test leaves on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parts.site import Site
from tests.slurm.checks import settled


@pytest.fixture(scope="module")
def running_site() -> Iterator[Site]:
    """Three nodes with hpcimg, for a whole module."""
    if missing := Site.missing():
        pytest.skip(missing)
    with Site(nodes=3) as site:
        yield site


@pytest.fixture
def site(running_site: Site) -> Iterator[Site]:
    """The site of the module: default settings before a test, no traces of jobs after it."""
    running_site.configure()
    yield running_site
    settled(running_site)
