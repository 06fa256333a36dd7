"""The throwaway cluster itself, and the site settings that every job of hpcimg depends on."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.cluster import Cluster, Hooks, write_hook
from tests.parts.daemon import PartError, wait_until
from tests.parts.slurmclient import USERS

pytestmark = pytest.mark.skipif(Cluster.missing() != "", reason=Cluster.missing())

EXAMPLE = Path(__file__).parents[2] / "etc" / "slurm.conf.example"

# A Prolog that does what the job's comment says, and leaves its environment to look at.
PROLOG = """\
#!/bin/sh
PATH=/usr/bin:/bin
env >"$SEEN/prolog.$SLURM_JOB_ID.$SLURMD_NODENAME.part"
mv "$SEEN/prolog.$SLURM_JOB_ID.$SLURMD_NODENAME.part" "$SEEN/prolog.$SLURM_JOB_ID.$SLURMD_NODENAME"
case ${SLURM_JOB_COMMENT-} in
    fail) exit 1 ;;
    "wait on $SLURMD_NODENAME") read -r _ <"$SEEN/gate.$SLURMD_NODENAME" ;;
esac
"""
TASK_PROLOG = """\
#!/bin/sh
echo "export FROM_TASK_PROLOG=$SEEN"
"""
EPILOG = """\
#!/bin/sh
: >"$SEEN/epilog.$SLURM_JOB_ID.$SLURMD_NODENAME"
"""
CLI_FILTER = """\
function slurm_cli_setup_defaults(options, early_pass) return slurm.SUCCESS end
function slurm_cli_pre_submit(options, offset)
    local wanted = os.getenv("WANTED")
    if wanted then options["comment"] = wanted end
    return slurm.SUCCESS
end
function slurm_cli_post_submit(offset, job_id, step_id) return slurm.SUCCESS end
"""
JOB_SUBMIT = """\
function slurm_job_submit(job, partitions, uid)
    job.admin_comment = "seen by job_submit"
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end
"""


class NotingHooks:
    """The three scripts, in a directory that all users can reach, and what they leave there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.chmod(0o755)
        for node in "n1", "n2", "n3":
            os.mkfifo(directory / f"gate.{node}")
        self.paths = Hooks(
            self._write("prolog", PROLOG),
            self._write("task-prolog", TASK_PROLOG),
            self._write("epilog", EPILOG),
        )

    def seen(self, hook: str, job: int, node: str = "n1") -> Path:
        """Return the file that the hook leaves when it is run for the job on the node."""
        return self.directory / f"{hook}.{job}.{node}"

    def wait_for(self, hook: str, job: int, node: str = "n1") -> None:
        wait_until(self.seen(hook, job, node).exists, what=f"{hook} on {node}")

    def environment(self, job: int) -> dict[str, str]:
        """Return the environment of the job's Prolog on n1."""
        lines = self.seen("prolog", job).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def open_gate(self, node: str) -> None:
        """Release the Prolog that waits on the node; blocks until there is one."""
        (self.directory / f"gate.{node}").write_text("\n")

    def _write(self, name: str, text: str) -> Path:
        script = self.directory / f"{name}.sh"
        script.write_text(text)
        script.chmod(0o755)
        return write_hook(self.directory, name, script, {"SEEN": str(self.directory)})


@pytest.fixture(scope="module")
def hooks() -> Iterator[NotingHooks]:
    directory = Path(tempfile.mkdtemp(prefix="hooks-", dir="/tmp"))
    yield NotingHooks(directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def cluster(hooks: NotingHooks) -> Iterator[Cluster]:
    lua = [hooks.directory / "cli_filter.lua", hooks.directory / "job_submit.lua"]
    for path, text in zip(lua, (CLI_FILTER, JOB_SUBMIT), strict=True):
        path.write_text(text)
    with Cluster(nodes=3, hooks=hooks.paths, lua=lua) as cluster:
        yield cluster


def site_settings() -> str:
    """Return the example's settings, without the hooks, which a test brings itself."""
    hook_lines = ("Prolog=", "TaskProlog=", "Epilog=")
    lines = EXAMPLE.read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith(hook_lines))


@pytest.mark.parametrize("user", USERS)
def test_a_job_runs_as_its_user(cluster: Cluster, user: str) -> None:
    job = cluster.sbatch("id -un", user=user)
    assert cluster.wait(job) == "COMPLETED"
    assert cluster.output(job) == f"{user}\n"


def test_srun_and_salloc_run_a_step_on_two_nodes(cluster: Cluster) -> None:
    name = ["printenv", "SLURMD_NODENAME"]
    nodes = ("--nodes=2", "--nodelist=n1,n2")
    direct = cluster.srun(*nodes, *name)
    allocated = cluster.salloc(*nodes, "srun", *name)
    assert sorted(direct.stdout.split()) == ["n1", "n2"], direct.stderr
    assert sorted(allocated.stdout.split()) == ["n1", "n2"], allocated.stderr


def test_the_prolog_sees_the_comment(cluster: Cluster, hooks: NotingHooks) -> None:
    comment = "a word; container:A=b C=d"
    job = cluster.sbatch("true", f"--comment={comment}", "--nodelist=n1")
    cluster.wait(job)
    assert hooks.environment(job)["SLURM_JOB_COMMENT"] == comment
    assert cluster.job(job)["Comment"] == comment


def test_without_a_comment_the_prolog_has_no_such_variable(
    cluster: Cluster, hooks: NotingHooks
) -> None:
    job = cluster.sbatch("true", "--nodelist=n1")
    cluster.wait(job)
    assert "SLURM_JOB_COMMENT" not in hooks.environment(job)


def test_the_task_prolog_sets_variables_of_the_job(cluster: Cluster, hooks: NotingHooks) -> None:
    job = cluster.sbatch('echo "$FROM_TASK_PROLOG"; srun printenv FROM_TASK_PROLOG')
    cluster.wait(job)
    assert cluster.output(job) == f"{hooks.directory}\n" * 2


def test_the_lua_files_are_in_use(cluster: Cluster) -> None:
    job = cluster.sbatch("true", env={"WANTED": "set by cli_filter"})
    fields = cluster.job(job)
    cluster.wait(job)
    assert fields["Comment"] == "set by cli_filter"
    assert fields["AdminComment"] == "seen by job_submit"


def test_a_failing_prolog_drains_the_node_until_it_is_resumed(cluster: Cluster) -> None:
    job = cluster.sbatch("true", "--comment=fail", "--nodelist=n3")
    try:
        wait_until(lambda: cluster.node_states()["n3"] == "drained", what="drain")
        assert cluster.node_reasons()["n3"] == "Prolog error"
        assert cluster.job(job)["JobState"] == "PENDING"
    finally:
        cluster.scancel(job)
        cluster.resume("n3")
    assert cluster.node_states()["n3"] == "idle"


def test_the_epilog_of_a_cancelled_job_waits_for_its_prolog(
    cluster: Cluster, hooks: NotingHooks
) -> None:
    job = cluster.sbatch("true", "--comment=wait on n1", "--nodelist=n1")
    hooks.wait_for("prolog", job)
    cluster.scancel(job)
    assert cluster.wait(job, until={"COMPLETING"}) == "COMPLETING"
    assert not hooks.seen("epilog", job).exists()
    hooks.open_gate("n1")
    assert cluster.wait(job) == "CANCELLED"
    assert hooks.seen("epilog", job).exists()


def test_a_node_that_is_lost_takes_its_job_along_and_comes_back(cluster: Cluster) -> None:
    job = cluster.sbatch("sleep 300", "--nodelist=n3", "--no-requeue")
    cluster.wait(job, until={"RUNNING"})
    cluster.stop_node("n3")
    cluster.start_node("n3")
    # FAILED, where the end of the job's processes was told before the node's.
    assert cluster.wait(job) in ("NODE_FAIL", "FAILED")
    assert cluster.srun("--nodelist=n3", "true").returncode == 0


def test_a_second_cluster_runs_beside_the_first(cluster: Cluster) -> None:
    with Cluster(nodes=1) as second:
        job = second.sbatch("true")
        assert second.wait(job) == "COMPLETED"
    assert set(cluster.node_states()) == {"n1", "n2", "n3"}


def test_a_stopped_cluster_leaves_nothing() -> None:
    with Cluster(nodes=1) as short:
        short.wait(short.sbatch("sleep 300"), until={"RUNNING"})
    assert not short.directory.exists()
    assert processes_that_name(short.directory) == []


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing() -> None:
    broken = Cluster(nodes=1, extra_conf="SelectType=select/unknown")
    with pytest.raises(PartError, match="select/unknown"), broken:
        pass
    assert not broken.directory.exists()
    assert processes_that_name(broken.directory) == []


def test_with_the_example_settings_jobs_wait_for_slow_nodes(hooks: NotingHooks) -> None:
    with Cluster(hooks=Hooks(hooks.paths.prolog), extra_conf=site_settings()) as cluster:
        echo = "echo on-$SLURMD_NODENAME"
        wide = cluster.sbatch(f"srun sh -c '{echo}'", "--nodelist=n1,n2", "--comment=wait on n2")
        # No srun here: newer slurmd replace themselves after the reconfiguration as soon as the
        # batch script has started, and lose a step that comes at this moment.
        narrow = cluster.sbatch(echo, "--nodelist=n3", "--comment=wait on n3")
        hooks.wait_for("prolog", wide, "n2")
        hooks.wait_for("prolog", narrow, "n3")
        # Longer than MessageTimeout and BatchStartTimeout together by default, 10 s each. Then
        # the nodes report, and slurmctld asks itself where the batch script on n3 is.
        time.sleep(24)
        cluster.scontrol("reconfigure")
        time.sleep(1)
        hooks.open_gate("n2")
        hooks.open_gate("n3")
        for job, lines in (wide, {"on-n1", "on-n2"}), (narrow, {"on-n3"}):
            assert cluster.wait(job) == "COMPLETED"
            assert lines <= set(cluster.output(job).split())
            assert cluster.job(job)["Restarts"] == "0"


def test_with_the_other_flags_of_the_example_the_script_waits_too(hooks: NotingHooks) -> None:
    other = re.search(r"^#(PrologFlags=.*)", EXAMPLE.read_text(), re.MULTILINE)
    assert other
    with Cluster(hooks=Hooks(hooks.paths.prolog), extra_conf=other[1]) as cluster:
        job = cluster.sbatch("echo started", "--nodelist=n1,n2", "--comment=wait on n2")
        for node in "n1", "n2":
            hooks.wait_for("prolog", job, node)
        time.sleep(2)
        assert cluster.output(job) == ""
        hooks.open_gate("n2")
        assert cluster.wait(job) == "COMPLETED"
        assert cluster.output(job) == "started\n"


def processes_that_name(directory: Path) -> list[str]:
    """Return the command lines of processes that have the directory there or in the environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found
