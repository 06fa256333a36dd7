"""The mounts for enroot's containers: they include what TaskProlog reads, read-only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcimg.config import files as conffiles

ROOT = Path(__file__).resolve().parents[2]
FSTAB = ROOT / "etc/enroot/mounts.d/60-hpcimg.fstab"


def lines() -> list[list[str]]:
    """Return the fields of each line, as enroot-mount and fstab(5) have them."""
    texts = FSTAB.read_text().splitlines()
    return [text.split() for text in texts if text and not text.startswith("#")]


def hooks() -> str:
    """Return where slurm.conf has TaskProlog."""
    text = (ROOT / "etc/slurm.conf.example").read_text()
    found = re.search(r"^TaskProlog=(/.*)$", text, re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize(
    "path", [hooks(), conffiles.DEFAULT_FILE, f"{conffiles.DEFAULT_STATE}/jobs/1/task"]
)
def test_what_task_prolog_needs_is_mounted(path: str) -> None:
    assert [source for source, *_ in lines() if path.startswith(f"{source}/")] != []


def test_the_mounts_are_read_only_and_hold_up_no_container() -> None:
    for source, target, kind, options in lines():
        assert (source, kind) == (target, "none")
        wanted = {"x-create=dir", "bind", "ro", "nosuid", "nodev", "nofail"}
        assert set(options.split(",")) == wanted


def test_the_manual_shows_the_file() -> None:
    page = (ROOT / "docs/howto-pyxis.md").read_text()
    shown = re.findall(r"```fstab\n(.*?)```", page, re.DOTALL)
    assert shown == ["".join(f"{' '.join(line)}\n" for line in lines())]
