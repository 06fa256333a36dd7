"""Images that burst_buffer/lua of a real slurmctld fetches while a job is pending."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pwd import getpwnam

import pytest

from hpcimg.slurm.features import Running
from hpcimg.slurm.planned import Planned
from hpcimg.slurm.query import Commands, running
from tests.parts.cluster import Cluster
from tests.parts.daemon import wait_until
from tests.parts.slurmclient import USERS
from tests.slurm.test_submit_filters import ETC, HAS_LUA

pytestmark = pytest.mark.skipif(
    bool(Cluster.missing()) or not HAS_LUA,
    reason=Cluster.missing() or "Slurm's Lua plugins are missing (slurm-wlm-basic-plugins)",
)

URI = "docker://registry.example.org/lab/x:1"
# Starts are planned every second.
SCHEDULER = "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1"
COMMENT = f"--comment=container:x={URI} container:/shared/y.sif"


class StageIn:
    """A cluster of one node, and a command in the place of `hpcimg prefetch`."""

    def __init__(self, directory: Path, *, hold: bool = False) -> None:
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
        self._lua.write_text(self._burst_buffer(hold=hold))
        self.cluster = Cluster(
            nodes=1,
            job_submit=self._submit,
            burst_buffer=self._lua,
            extra_conf=f"SchedulerParameters={SCHEDULER}",
        )

    def _burst_buffer(self, *, hold: bool) -> str:
        text = (ETC / "burst_buffer.lua").read_text()
        for before, after in {
            '"sudo -n /usr/bin/hpcimg prefetch"': f'"{self._command}"',
            "local HOLD = false": f"local HOLD = {str(hold).lower()}",
        }.items():
            assert text.count(before) == 1
            text = text.replace(before, after)
        return text

    def will(self, code: int, words: str) -> None:
        """Let the command exit with this code, and print these words last."""
        self.answer.write_text(f"exit {code}\n{words}\n")
        self.answer.chmod(0o644)

    def asked_for(self) -> list[str]:
        return self.asked.read_text().splitlines()


@contextmanager
def running_site(*, hold: bool = False) -> Iterator[StageIn]:
    # SlurmUser runs the command: pytest's own directories are for one account alone.
    with tempfile.TemporaryDirectory(prefix="hpcimg-stage-in-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        stage_in = StageIn(directory, hold=hold)
        with stage_in.cluster as cluster:
            shutil.copy(ETC / "hpcimg.lua", cluster.directory)
            (cluster.directory / "hpcimg.lua").chmod(0o644)
            yield stage_in


@pytest.fixture(scope="module")
def running_one() -> Iterator[StageIn]:
    with running_site() as stage_in:
        yield stage_in


@pytest.fixture
def stage_in(running_one: StageIn) -> StageIn:
    running_one.asked.write_text("")
    running_one.will(0, "fine")
    return running_one


def test_while_the_job_waits_for_a_node(stage_in: StageIn) -> None:
    cluster = stage_in.cluster
    go = cluster.work / "go"
    first = cluster.sbatch(f"until [ -e {go} ]; do sleep 0.1; done", "--exclusive")
    cluster.wait(first, until={"RUNNING"})
    second = cluster.sbatch("true", "--exclusive", COMMENT)
    wait_until(lambda: bool(stage_in.asked_for()), what="the stage-in")
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


def test_a_site_that_holds_such_jobs() -> None:
    with running_site(hold=True) as stage_in:
        cluster = stage_in.cluster
        stage_in.will(12, "hpcimg: there is nothing at it")
        job = cluster.sbatch("true", COMMENT)
        wait_until(lambda: cluster.job(job)["Priority"] == "0", what="the job to be held")
        reason = cluster.run(["squeue", "--noheader", "--format=%r", f"--jobs={job}"]).stdout
        assert "there is nothing at it" in reason
        cluster.scancel(job)
        stage_in.will(20, "a server is down")
        assert cluster.wait(cluster.sbatch("true", COMMENT)) == "COMPLETED"


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
    assert set(stage_in.asked_for()) <= {"-- --queue docker://h/x;y"}
    assert not trap.exists()


def test_planned_jobs_and_running_ones(stage_in: StageIn, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = stage_in.cluster
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    go = cluster.work / "go-planned"
    text = f"container:{URI} a|b\n1|0|n1|container:/evil"
    busy = f"until [ -e {go} ]; do sleep 0.1; done"
    first = cluster.sbatch(busy, "--exclusive", "--time=2", "--comment=x")
    cluster.wait(first, until={"RUNNING"})
    before = time.time()
    second = cluster.sbatch("true", "--exclusive", "--time=1", f"--comment={text}")
    wait_until(lambda: any(job.nodes for job in Commands().planned()), what="a planned start")
    [planned] = Commands().planned()
    assert planned._replace(start=0.0) == Planned(0.0, getpwnam(USERS[0]).pw_uid, "n1", text)
    assert before <= planned.start < before + 300
    assert running() == [Running("n1", "x")]
    go.touch()
    assert cluster.wait(second) == "COMPLETED"
