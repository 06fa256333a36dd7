"""The demo's own checks, at a place that needs no Slurm; tests/slurm has the other one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo.hooks import HooksPlace
from tests.demo.story import Story
from tests.parts import images


@pytest.mark.parametrize("tools", ["squashfs-tools", "no squashfs-tools"])
def test_the_demo_finds_nothing_wrong(
    tools: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tools == "no squashfs-tools":
        monkeypatch.setattr(images, "missing", lambda: "no mksquashfs here")
    elif missing := images.missing():
        pytest.skip(missing)
    with HooksPlace(tmp_path) as place:
        story = Story(place)
        story.tell()
    assert story.wrong == []
