"""What the tests of conversions share."""

from __future__ import annotations

import pytest

from hpcimg import programs
from tests.parts import oldsquashfs


@pytest.fixture(params=["this host's", "4.4", "4.3"])
def mksquashfs(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Each mksquashfs that conversions work with in a way of its own; return its version."""
    version = str(request.param)
    if version != "this host's":
        if missing := oldsquashfs.missing():
            pytest.skip(missing)
        directory = oldsquashfs.put(tmp_path_factory.mktemp("tools"), version).parent
        monkeypatch.setattr(programs, "PATH", f"{directory}:{programs.PATH}")
    return version
