"""Images that are brought while a job is pending, by burst_buffer/lua of a real slurmctld."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.cluster import Cluster
from tests.parts.daemon import wait_until
from tests.slurm.test_submit_filters import ETC, HAS_LUA

pytestmark = pytest.mark.skipif(
    bool(Cluster.missing()) or not HAS_LUA,
    reason=Cluster.missing() or "Slurm's Lua plugins are missing (slurm-wlm-basic-plugins)",
)

URI = "docker://registry.example.org/lab/x:1"
COMMENT = f"--comment=container:x={URI} container:/shared/y.sif"


class StageIn:
    """A cluster of one node, and a command in the place of `hpcimg prefetch`."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o755)
        self.asked = directory / "asked"
        self.asked.touch()
        self.asked.chmod(0o666)
        self.answer = directory / "answer"
        self._command = directory / "prefetch"
        self._command.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$*\" >>{self.asked}\n"
            f"echo a line before\ncat {self.answer}\nexit $(sed -n 's/^exit //p' {self.answer})\n"
        )
        self._command.chmod(0o755)
        self.will(0, "fine")
        submit = (ETC / "job_submit.lua").read_text()
        assert "local STAGE_IN = false" in submit
        self._submit = directory / "job_submit.lua"
        self._submit.write_text(submit.replace("local STAGE_IN = false", "local STAGE_IN = true"))
        self._lua = directory / "burst_buffer.lua"
        self._lua.write_text(self.burst_buffer(hold=False))
        self.cluster = Cluster(nodes=1, job_submit=self._submit, burst_buffer=self._lua)

    def burst_buffer(self, *, hold: bool) -> str:
        text = (ETC / "burst_buffer.lua").read_text()
        for before, after in {
            '"sudo -n /usr/bin/hpcimg prefetch"': f'"{self._command}"',
            "local HOLD = false": f"local HOLD = {str(hold).lower()}",
        }.items():
            assert text.count(before) == 1
            text = text.replace(before, after)
        return text

    def will(self, code: int, words: str) -> None:
        """Let the command end with this code, and say these words last."""
        self.answer.write_text(f"exit {code}\n{words}\n")
        self.answer.chmod(0o644)

    def asked_for(self) -> list[str]:
        return self.asked.read_text().splitlines()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StageIn]:
    stage_in = StageIn(Path(tmp_path_factory.mktemp("stage-in")))
    for parent in list(stage_in.asked.parents)[:3]:
        parent.chmod(0o755)
    with stage_in.cluster:
        shutil.copy(ETC / "hpcimg.lua", stage_in.cluster.directory)
        (stage_in.cluster.directory / "hpcimg.lua").chmod(0o644)
        yield stage_in


@pytest.fixture
def stage_in(running: StageIn) -> StageIn:
    running.asked.write_text("")
    running.will(0, "fine")
    return running


def test_while_the_job_waits_for_a_node(stage_in: StageIn) -> None:
    cluster = stage_in.cluster
    go = cluster.work / "go"
    first = cluster.sbatch(f"until [ -e {go} ]; do sleep 0.1; done", "--exclusive")
    cluster.wait(first, until={"RUNNING"})
    second = cluster.sbatch("true", "--exclusive", COMMENT)
    wait_until(lambda: bool(stage_in.asked_for()), timeout_s=60, what="the stage-in")
    assert cluster.job(second)["JobState"] == "PENDING"
    go.touch()
    assert cluster.wait(second) == "COMPLETED"
    # What is on a mounted file system has not to be brought.
    assert stage_in.asked_for() == [f"-- {URI}"]


def test_what_cannot_be_had_is_left_to_prolog(stage_in: StageIn) -> None:
    stage_in.will(12, "there is nothing at it")
    job = stage_in.cluster.sbatch("true", COMMENT)
    assert stage_in.cluster.wait(job) == "COMPLETED"
    assert f"job {job}: prefetch of 1 ended with 12" in stage_in.cluster.log("slurmctld")


def test_a_site_that_holds_such_jobs(stage_in: StageIn) -> None:
    cluster = stage_in.cluster
    lua = cluster.directory / "burst_buffer.lua"
    before = lua.read_text()
    lua.write_text(stage_in.burst_buffer(hold=True))
    stage_in.will(12, "hpcimg: there is nothing at it")
    try:
        job = cluster.sbatch("true", COMMENT)
        wait_until(
            lambda: cluster.job(job)["Priority"] == "0", timeout_s=60, what="the job to be held"
        )
        reason = cluster.run(["squeue", "--noheader", "--format=%r", f"--jobs={job}"]).stdout
        assert "there is nothing at it" in reason
        cluster.scancel(job)
        stage_in.will(20, "a server is down")
        assert cluster.wait(cluster.sbatch("true", COMMENT)) == "COMPLETED"
    finally:
        lua.write_text(before)


def test_jobs_without_anything_to_bring_have_no_burst_buffer(stage_in: StageIn) -> None:
    cluster = stage_in.cluster
    jobs = [
        cluster.sbatch("true"),
        cluster.sbatch("true", "--comment=container:/shared/y.sif"),
        cluster.sbatch("true", COMMENT, user="root"),  # who may have none
    ]
    assert [cluster.wait(job) for job in jobs] == ["COMPLETED"] * 3
    assert stage_in.asked_for() == []


def test_what_users_write_there_themselves(stage_in: StageIn, tmp_path: Path) -> None:
    """It goes through a shell."""
    cluster = stage_in.cluster
    trap = cluster.work / "trap"
    words = f"container:';touch${{IFS}}{trap};' container:$(touch\t{trap}) container:--queue `id`"
    job = cluster.sbatch(
        f"#!/bin/sh\n#BB_LUA {words} container:a|b container:docker://h/x;y\ntrue\n"
    )
    assert cluster.wait(job) == "COMPLETED"
    assert stage_in.asked_for() == ["-- --queue docker://h/x;y"]
    assert not trap.exists()
