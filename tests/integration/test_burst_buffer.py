"""etc/burst_buffer.lua under each Lua that is installed here, without Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.test_submit_filters import ETC, INTERPRETERS, URI, quoted
from tests.parts.daemon import TIMEOUT_S

# What Slurm 22.05 to 26.05 look for.
FUNCTIONS = (
    "job_process", "pools", "job_teardown", "setup", "data_in", "test_data_in", "real_size",
    "paths", "pre_run", "post_run", "data_out", "test_data_out", "get_status",
)  # fmt: skip
STUB = """
slurm = { SUCCESS = 0, ERROR = -1 }
slurm.log_info = function(...) io.stderr:write(string.format(...), "\\n") end
slurm.log_error = slurm.log_info
"""

pytestmark = pytest.mark.skipif(not INTERPRETERS, reason="no lua here: install lua5.4")


class StageIn:
    """The file with a command in place of `hpcimg prefetch` that records its arguments."""

    def __init__(self, command: str, directory: Path) -> None:
        self._command = command
        self._directory = directory
        self.asked = directory / "asked"
        self.script = directory / "script"
        self.hold = False

    def run(self, *, code: int = 0, says: str = "") -> tuple[int, str, str]:
        """Call slurm_bb_data_in; return what it returns, and what it logged."""
        program = self._directory / "prefetch"
        program.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{self.asked}\n"
            f"echo begun\necho '{says}' >&2\nexit {code}\n"
        )
        program.chmod(0o755)
        text = (ETC / "burst_buffer.lua").read_text()
        text = text.replace('"sudo -n /usr/bin/hpcimg prefetch"', quoted(str(program)))
        text = text.replace("local HOLD = false", f"local HOLD = {str(self.hold).lower()}")
        call = f"print(slurm_bb_data_in('7', {quoted(str(self.script))}, 1000, 1000, {{}}))"
        done = subprocess.run(
            [self._command, "-"],
            input=f"{STUB}\n{text}\n{call}",
            capture_output=True,
            text=True,
            cwd=self._directory,
            timeout=TIMEOUT_S,
            check=True,
        )
        result, _, said = done.stdout.rstrip("\n").partition("\t")
        return int(result), "" if said == "nil" else said, done.stderr

    def asked_for(self) -> list[str]:
        return self.asked.read_text().splitlines() if self.asked.exists() else []


@pytest.fixture(params=INTERPRETERS)
def stage_in(request: pytest.FixtureRequest, tmp_path: Path) -> StageIn:
    return StageIn(request.param, tmp_path)


def test_what_is_brought(stage_in: StageIn) -> None:
    stage_in.script.write_text(
        f"#!/bin/sh\n#BB_LUA container:{URI} container:samtools other:x\n"
        f"#SBATCH -n 2\n#BB_LUA container:{URI}\necho '#BB_LUA container:/no'\n"
    )
    assert stage_in.run(says="done")[:2] == (0, "")
    assert stage_in.asked_for() == ["--", URI, "samtools"]


def test_a_job_without_images(stage_in: StageIn) -> None:
    stage_in.script.write_text("#!/bin/sh\n#BB_LUA pool=x\n")
    assert stage_in.run() == (0, "", "")
    stage_in.script.unlink()
    assert stage_in.run() == (0, "", "")
    assert stage_in.asked_for() == []


@pytest.mark.parametrize(
    ("hold", "code", "result"),
    [(False, 12, 0), (True, 12, -1), (True, 20, 0), (True, 31, 0), (True, 0, 0), (True, 127, 0)],
)
def test_what_fails(stage_in: StageIn, hold: bool, code: int, result: int) -> None:
    stage_in.hold = hold
    stage_in.script.write_text(f"#BB_LUA container:{URI}\n")
    found, said, log = stage_in.run(code=code, says="hpcimg: why")
    assert (found, said) == (result, "hpcimg: why" if result else "")
    assert f"ended with {code}: hpcimg: why" in log


@pytest.mark.parametrize(
    "word",
    [
        "container:';touch${IFS}trap;'",
        "container:$(touch\ttrap)",
        "container:`touch trap`",
        'container:"x"',
        "container:a|b",
        "container:a\\b",
        "container:",
        "container:" + "x" * 2000,
    ],
)
def test_words_that_a_shell_would_not_take_as_they_are(stage_in: StageIn, word: str) -> None:
    stage_in.script.write_text(f"#BB_LUA {word} container:--queue container:a;b&c#d(e)*\n")
    stage_in.run()
    assert stage_in.asked_for() == ["--", "--queue", "a;b&c#d(e)*"]
    assert not (stage_in.script.parent / "trap").exists()


@pytest.mark.parametrize("command", INTERPRETERS)
def test_all_that_releases_of_slurm_look_for(command: str) -> None:
    text = (ETC / "burst_buffer.lua").read_text()
    calls = "".join(
        f"print({quoted(name)}, (slurm_bb_{name}('7', '/no', 0, 0, '', 0, '')))\n"
        for name in FUNCTIONS
    )
    done = subprocess.run(
        [command, "-"], input=f"{STUB}\n{text}\n{calls}", capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{name}\t0" for name in FUNCTIONS]
