"""Hot records of mounted images: which file is checked, and with whose rights."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcimg import look
from hpcimg.cache import directories, hot, lease
from hpcimg.cache.paths import Layout

SEEN = "1-2-3-4"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path / "cache"), str(tmp_path / "state"))
    directories.prepare(layout)
    lease.open_to_hits(layout, "sha256-1")
    for path in (layout.image("sha256-1", "sif", None), layout.meta("sha256-1")):
        Path(path).touch()
    return layout


def lookup(layout: Layout, look: str, *, rights: str = "7:8:9,10") -> hot.Hit | None:
    """Remember /x.sif by how it looked, and look it up again."""
    hit = hot.Hit("sha256-1", layout.image("sha256-1", "sif", None), "file:///x.sif")
    hot.remember(
        layout, "/x.sif", hit, owner=None, fingerprint="f", fresh_until=time.time() + 60,
        mounted=hot.Mounted(rights, "/x.sif", look),
    )  # fmt: skip
    return hot.lookup(layout, "/x.sif", job="1", uid=7, fingerprint="f")


@pytest.mark.parametrize("rights", ["", "7:8:", "7:8:9,10"])
def test_the_file_is_looked_at_with_the_rights_of_who_copied_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, rights: str
) -> None:
    asked = []

    def take(path: str, rights: str) -> str:
        asked.append((path, rights))
        return SEEN

    monkeypatch.setattr(look, "take", take)
    assert lookup(layout, SEEN, rights=rights)
    assert asked == [("/x.sif", rights)]
    assert lookup(layout, "4-3-2-1", rights=rights) is None


@pytest.mark.parametrize("said", ["0:0: /etc/shadow x", " 0:0: /etc/shadow x", "x\n0:0: /y z", ""])
def test_what_a_source_said_changes_neither(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    asked = []

    def take(path: str, rights: str) -> str:
        asked.append((path, rights))
        return ""  # it cannot be read

    monkeypatch.setattr(look, "take", take)
    assert lookup(layout, said) is None
    assert set(asked) <= {("/x.sif", "7:8:9,10")}
