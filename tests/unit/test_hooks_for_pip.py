"""The hooks that `hpcimg hooks` writes: they run what they are told, and search for nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hpcimg.cli.hooks import written
from hpcimg.errors import Bug
from tests.parts.node import EPILOG, PROLOG

HOOKS = [PROLOG, EPILOG]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_a_hook_runs_away_from_its_tree(hook: Path, tmp_path: Path) -> None:
    python = tmp_path / "with 'quote" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$PWD: $*"\n')
    python.chmod(0o755)
    task_prolog = tmp_path / "task-prolog"
    task_prolog.write_text("exit 0\n")
    copy = tmp_path / hook.name
    copy.write_text(written(hook.read_text(), python=str(python), task_prolog=str(task_prolog)))
    done = subprocess.run(
        ["/bin/sh", copy],
        env={"SLURM_JOB_COMMENT": "container:x", "SLURM_JOB_ID": "7"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    root = Path(__file__).parents[2]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("/: -I -S -c import gc;")
    assert done.stdout.endswith(f" {root}\n")


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
@pytest.mark.parametrize(
    ("is_there", "would_be"),
    [
        ("python=", "interpreter="),
        ("task_prolog=", "prolog="),
        ("root=$PWD\n", "root=$(pwd)/other\nlibrary=$root/lib\n"),
        ("start=", "helper=${0%/*}/helper\nstart="),
    ],
)
def test_a_hook_that_searches_in_a_new_way_is_not_written(
    hook: Path, is_there: str, would_be: str
) -> None:
    text = hook.read_text()
    assert is_there in text
    with pytest.raises(Bug, match="they search for other files"):
        written(text.replace(is_there, would_be), python="/python", task_prolog="/task-prolog")
