"""Fixtures for all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.parts.node import Node
from tests.parts.webserver import WebServer

# What `make test` tries is the same each time; `make test-long` tries what nobody has tried.
settings.register_profile(
    "here", derandomize=not os.environ.get("HPCIMG_LONG"), database=None, deadline=None
)
settings.load_profile("here")

# Whose tests take longest comes first, so that at the end no process is left with a long file.
_ORDER = ("slurm", "faults", "integration")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the directories, which pytest-randomly has mixed; within them the order stays random."""
    place = {name: number for number, name in enumerate(_ORDER)}
    items.sort(key=lambda item: place.get(item.path.parent.name, len(_ORDER)))


@pytest.fixture(autouse=True)
def no_real_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prevent tests from touching the real cache of their host."""
    monkeypatch.setenv("HPCIMG_CONF", str(tmp_path / "no-such.conf"))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node for one test."""
    return Node(tmp_path)


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A web server for one test."""
    with WebServer() as server:
        yield server


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every account can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="hpcimg-test-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def shared(open_directory: Path) -> Path:
    """A directory for the site tier."""
    directory = open_directory / "site"
    directory.mkdir(mode=0o755)
    return directory
