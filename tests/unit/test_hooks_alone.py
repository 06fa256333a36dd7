"""Jobs that the hooks' shell handles alone: only those for which the program would do nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hpcimg.slurm import comment as comments
from tests.comment_cases import ASKS, INNOCENT, MISSED, PROBLEMS
from tests.parts.node import ROOT

ALL = [*INNOCENT, *(comment for comment, _ in (*ASKS, *MISSED, *PROBLEMS))]
STARTED = "the program"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The hooks, with a Python that prints that it was started."""
    for name in ("prolog", "epilog"):
        shutil.copytree(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho {STARTED}\n")
    python.chmod(0o755)
    return tmp_path


def starts(shell: list[str], hook: Path, **environment: str) -> bool:
    """Run a hook; tell whether it left the job to the program."""
    done = subprocess.run(
        [*shell, hook],
        env={"SLURM_JOB_ID": "7", **environment},
        cwd="/",
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout in ("", f"{STARTED}\n")
    return done.stdout != ""


def is_none(comment: str) -> bool:
    """Tell whether the program has nothing to do for a job with this comment."""
    wanted = comments.read(comment)
    return not wanted.images and not wanted.problem and not wanted.missed[0]


@pytest.mark.parametrize("variable", comments.VARIABLES)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_shell_says_none_only_where_the_program_does(
    shell: list[str], tree: Path, variable: str, locale: str
) -> None:
    hook = tree / "prolog" / "hpcimg-prolog"
    wild = [f"caf\xe9 \udcff{comment}\udc80" for comment in ALL]
    alone = [
        comment
        for comment in (*ALL, *wild)
        if not starts(shell, hook, LC_ALL=locale, **{variable: comment})
    ]
    assert [comment for comment in alone if not is_none(comment)] == []


@pytest.mark.parametrize(
    "comment", ["", "a note", "a/b, /data/x.sif", 'wpps=3 {"a": [1]}', "x" * 65536, "*", "a\nb"]
)
def test_most_jobs_need_no_program(shell: list[str], tree: Path, comment: str) -> None:
    hook = tree / "prolog" / "hpcimg-prolog"
    assert is_none(comment)
    assert not starts(shell, hook, SLURM_JOB_COMMENT=comment)
    assert not starts(shell, hook)
    assert starts(shell, hook, SLURM_JOB_COMMENT=comment, SLURM_JOB_EXTRA="Container:x")


def test_a_comment_without_the_key_colons_and_equals_signs_requests_nothing() -> None:
    """The shell relies on it."""
    texts = [comment.translate({ord(":"): None, ord("="): None}) for comment in ALL]
    texts = [text for text in texts if "container" not in text.lower()]
    assert [text for text in texts if not is_none(text)] == []
    assert any("/" in text for text in texts)


def test_a_job_without_a_directory_needs_no_program_at_its_end(
    shell: list[str], tree: Path
) -> None:
    hook = tree / "epilog" / "hpcimg-epilog"
    conf = tree / "hpcimg.conf"
    conf.write_text(f"[state]\npath = {tree}/state-%n\n")
    environment = {"HPCIMG_CONF": str(conf), "SLURMD_NODENAME": "n1"}
    assert not starts(shell, hook, **environment)
    (tree / "state-n1" / "jobs" / "70").mkdir(parents=True)
    assert not starts(shell, hook, **environment)
    (tree / "state-n1" / "jobs" / "7").mkdir()
    assert starts(shell, hook, **environment)


def test_an_epilog_that_cannot_tell_leaves_it_to_the_program(shell: list[str], tree: Path) -> None:
    hook = tree / "epilog" / "hpcimg-epilog"
    (tree / "prolog" / "hpcimg-task-prolog").write_text("exit 0\n")
    assert starts(shell, hook)
    (tree / "prolog" / "hpcimg-task-prolog").write_text("echo /nowhere; exit 1\n")
    assert starts(shell, hook)
