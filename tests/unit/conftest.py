"""Fixtures for several unit tests."""

from __future__ import annotations

import shutil

import pytest

from hpcimg import programs
from tests.parts import oldsquashfs

# What /bin/sh is on Debian, and on RHEL and SLES.
_SHELLS = [["dash"], ["bash", "--posix"]]


@pytest.fixture(params=["this host's", "4.4", "4.3"])
def mksquashfs(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Each mksquashfs that conversions use differently; return its version."""
    version = str(request.param)
    if version != "this host's":
        if missing := oldsquashfs.missing():
            pytest.skip(missing)
        directory = oldsquashfs.put(tmp_path_factory.mktemp("tools"), version).parent
        monkeypatch.setattr(programs, "PATH", f"{directory}:{programs.PATH}")
    return version


@pytest.fixture(params=_SHELLS, ids=lambda shell: shell[0])
def shell(request: pytest.FixtureRequest) -> list[str]:
    """A shell by its path, with its options."""
    name, *options = request.param
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"not installed here: {name}")
    return [path, *options]
