"""The task prolog: pure shell, which finds the job's directory that Python created."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcimg.config import files as conffiles
from tests.parts.node import TASK_PROLOG
from tests.unit.test_conffiles import TEXTS

# Tells where the script looked for the job, without a change to the script.
LOOK = 'trap \'printf %s "$job" >&2\' EXIT; . "$1"'


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that every user may enter, with an empty main file and an empty bin/."""
    with tempfile.TemporaryDirectory(prefix="task-prolog-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        (directory / "conf.d").mkdir()
        (directory / "bin").mkdir()
        (directory / "hpcimg.conf").write_text(f"[state]\npath = {directory}/state\n")
        yield directory


def environment(directory: Path, **more: str) -> dict[str, str]:
    """Return all that the script gets; no program is in its PATH."""
    named = {"HPCIMG_CONF": f"{directory}/hpcimg.conf", "SLURM_JOB_ID": "7"}
    return {"PATH": f"{directory}/bin", **named, "SLURMD_NODENAME": "n1", **more}


def run(
    shell: list[str], directory: Path, *, user: int | None = None, **more: str
) -> tuple[int, str, str]:
    """Run the script; return its exit code and what it wrote."""
    done = subprocess.run(
        [*shell, TASK_PROLOG],
        env=environment(directory, **more),
        cwd="/",
        text=True,
        capture_output=True,
        check=False,
        user=user,
    )
    return done.returncode, done.stdout, done.stderr


def prepared(directory: Path, text: str | None, *, state: str = "state") -> Path:
    """Make the job's directory as Prolog does, with a task file of that text."""
    job = directory / state / "jobs" / "7"
    job.mkdir(parents=True)
    if text is not None:
        (job / "task").write_text(text)
    return job


def looked_in(shell: list[str], directory: Path, **more: str) -> str:
    """Return the job directory that the script looked for."""
    done = subprocess.run(
        [*shell, "-c", LOOK, "sh", TASK_PROLOG],
        env=environment(directory, **more),
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    return os.fsdecode(done.stderr)


def expected(directory: Path, monkeypatch: pytest.MonkeyPatch, **more: str) -> str:
    """Return the job directory that Prolog makes, as far as it can read the configuration."""
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    for name, value in environment(directory, **more).items():
        if name != "PATH" and value:
            monkeypatch.setenv(name, value)
    files = conffiles.read_what_can_be(conffiles.main_file())
    return f"{conffiles.directories(files)[1]}/jobs/7"


# What it says


def test_prints_the_lines_that_prolog_prepared(shell: list[str], directory: Path) -> None:
    lines = "export HPCIMG_IMAGE=/c/a.sif\nexport HPCIMG_IMAGES=/c/a.sif:/c/b.sif\n"
    prepared(directory, lines)
    assert run(shell, directory) == (0, lines, "")


def test_lines_are_printed_as_they_are(shell: list[str], directory: Path) -> None:
    lines = "print   two\\n %s $(id) `id` * \\\nprint exit 5\n  exit 6\n-n\nlast"
    prepared(directory, lines)
    assert run(shell, directory) == (0, lines.removesuffix("last"), "")


@pytest.mark.parametrize("code", [1, 12])
def test_ends_with_the_code_that_prolog_prepared(
    shell: list[str], directory: Path, code: int
) -> None:
    prepared(directory, f"print hpcimg: no such image\nexit {code}\n")
    assert run(shell, directory) == (code, "print hpcimg: no such image\n", "")


def test_a_job_that_prolog_does_not_know_starts_in_silence(
    shell: list[str], directory: Path
) -> None:
    assert run(shell, directory) == (0, "", "")


def test_prolog_was_killed_half_way(shell: list[str], directory: Path) -> None:
    prepared(directory, None)
    code, said, _ = run(shell, directory)
    assert code == 1
    assert said.startswith("print hpcimg: Prolog was interrupted on node n1 ")
    assert said.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_another_users_task_file(shell: list[str], directory: Path) -> None:
    job = prepared(directory, "export HPCIMG_IMAGE=/secret.sif\n")
    (job / "task").chmod(0o400)
    code, said, _ = run(shell, directory, user=1)
    assert code == 1
    assert "secret" not in said


def test_starts_no_other_program(shell: list[str], directory: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("not installed here: strace")
    prepared(directory, "print x\nexit 3\n")
    trace = directory / "trace"
    done = subprocess.run(
        [strace, "-f", "-qq", "-e", "trace=process", "-o", trace, *shell, TASK_PROLOG],
        env=environment(directory),
        capture_output=True,
        check=False,
    )
    if not trace.exists() or "execve(" not in trace.read_text():
        pytest.skip("strace may not trace here")
    assert done.returncode == 3
    calls = [line.split("(")[0].split()[-1] for line in trace.read_text().splitlines()]
    assert calls.count("execve") == 1
    assert not {"clone", "clone3", "fork", "vfork"} & set(calls)


# Where it looks


@pytest.mark.parametrize(
    ("main", "others"),
    [
        ("", {}),
        (None, {}),
        ("[state]\npath = /a/%n\n", {}),
        ("[state]\npath=/%n%n/%n/x\n", {}),
        ("[state]\n\t\npath\t =   /a \t \r\n", {}),
        ("[state]\npath = /a", {}),  # no line feed at the end
        ("[state]\npath = /a\n[cache]\npath = /b\n", {}),
        ("[cache]\npath = /b\n", {}),
        ("[state]\npath = /a\n", {"b.conf": "[state]\npath = /b\n", "a.conf": "path = /c\n"}),
        ("[state]\npath = /a\n", {"a.conf": "[state]\npath = /b\n", "B.conf": "[state]\npath=/c"}),
        ("[state]\npath = /a\n", {".b.conf": "[state]\npath = /b\n", "c": "[state]\npath = /c"}),
        (None, {"a.conf": "[state]\npath = /a\n"}),
        ("[state]\npath = /a\n", {"b.conf": "[state]\npath =\n"}),
        ("[state]\npath = relative\n", {}),
        ("[state]\n  path = /a\n", {}),
        ("[state]\npath x = /a\n#path = /b\npaths = /c\n", {}),
    ],
)
def test_looks_where_prolog_writes(
    shell: list[str],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: str | None,
    others: dict[str, str],
) -> None:
    if main is None:
        (directory / "hpcimg.conf").unlink()
    else:
        (directory / "hpcimg.conf").write_text(main, newline="")
    for name, text in others.items():
        (directory / "conf.d" / name).write_text(text)
    assert looked_in(shell, directory) == expected(directory, monkeypatch)


@pytest.mark.parametrize("name", ["n1", "n1.cluster.example", "n%n", ""])
def test_the_nodes_name(
    shell: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (directory / "hpcimg.conf").write_text("[state]\npath = /a/%n/b\n")
    where = looked_in(shell, directory, SLURMD_NODENAME=name)
    assert where == expected(directory, monkeypatch, SLURMD_NODENAME=name)
    assert where == f"/a/{name or os.uname().nodename.split('.')[0]}/b/jobs/7"


def test_without_a_directory_for_more_files(
    shell: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "conf.d").rmdir()
    assert (
        looked_in(shell, directory)
        == expected(directory, monkeypatch)
        == f"{directory}/state/jobs/7"
    )


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=TEXTS, locale=st.sampled_from(["C", "C.UTF-8"]))
def test_reads_any_text_as_python_does(
    shell: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch, text: str, locale: str
) -> None:
    # Of a file that is refused as well: the job that is to hear of it has to look there.
    (directory / "hpcimg.conf").write_bytes(text.encode())
    assert looked_in(shell, directory, LC_ALL=locale) == expected(directory, monkeypatch)
