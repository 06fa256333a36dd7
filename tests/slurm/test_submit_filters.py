"""The submit side within real Slurm commands and a real slurmctld, up to what Prolog sees."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.cluster import Cluster, Hooks, slurm_version
from tests.parts.slurmclient import USERS

ETC = Path(__file__).parents[2] / "etc"
# /usr/lib64/slurm on some distributions, /usr/lib/x86_64-linux-gnu/slurm-wlm on others.
HAS_LUA = any(
    [*Path("/usr").glob(f"{directories}/slurm*/cli_filter_lua.so")]
    for directories in ("lib*", "lib/*")
)
SUBMIT = [["sbatch", "--wrap=true"], ["srun", "true"], ["salloc", "true"]]
IMAGE = {"HPCIMG_CONTAINER": "x=docker://ubuntu:22.04"}
TOKEN = "container:x=docker://ubuntu:22.04"
TYPO = {"HPCIMG_CONTAINER": "ubuntu:22.04"}
HINT = "did you mean docker://ubuntu:22.04"

# sbatch has --extra, and Prolog SLURM_JOB_EXTRA, since this release.
HAS_EXTRA = bool(shutil.which("sbatch")) and slurm_version() >= (23, 2)
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason="Slurm is older than 23.02")

pytestmark = pytest.mark.skipif(
    bool(Cluster.missing()) or not HAS_LUA,
    reason=Cluster.missing() or "Slurm's Lua plugins are missing (slurm-wlm-basic-plugins)",
)


class Site:
    """A cluster whose Prolog writes down the comment that it is given."""

    def __init__(self, directory: Path, *plugins: str) -> None:
        self.comments = directory / "comments"
        self.comments.mkdir()
        prolog = directory / "prolog"
        prolog.write_text(
            f'#!/bin/sh\nprintf %s "$SLURM_JOB_COMMENT" > "{self.comments}/$SLURM_JOB_ID"\n'
            f'printf %s "$SLURM_JOB_EXTRA" > "{self.comments}/$SLURM_JOB_ID.extra"\n'
        )
        prolog.chmod(0o755)
        self.cluster = Cluster(nodes=1, hooks=Hooks(prolog), lua=[ETC / name for name in plugins])

    def start(self) -> None:
        """Put the grammar beside slurm.conf, as a site does."""
        self.grammar = self.cluster.directory / "hpcimg.lua"
        shutil.copy(ETC / "hpcimg.lua", self.grammar)
        self.grammar.chmod(0o644)

    def comment(self, job_id: int | str) -> str:
        return (self.comments / str(job_id)).read_text()

    def extra(self, job_id: int | str) -> str:
        return (self.comments / f"{job_id}.extra").read_text()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both plugins: what the first adds, the second finds."""
    site = Site(tmp_path_factory.mktemp("both"), "cli_filter.lua", "job_submit.lua")
    with site.cluster:
        site.start()
        yield site


@pytest.fixture(scope="module")
def ctld(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The plugin in slurmctld alone."""
    site = Site(tmp_path_factory.mktemp("ctld"), "job_submit.lua")
    with site.cluster:
        site.start()
        yield site


@pytest.fixture(params=["both", "ctld"])
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(request.param)
    return found


def test_sbatch(site: Site) -> None:
    job_id = site.cluster.sbatch("true", env=IMAGE)
    assert site.cluster.wait(job_id) == "COMPLETED"
    assert site.comment(job_id) == TOKEN


def test_sbatch_with_a_comment_in_the_script(site: Site) -> None:
    script = f'#!/bin/sh\n#SBATCH --comment="two words {TOKEN}"\ntrue\n'
    env = {"HPCIMG_CONTAINER": f"{IMAGE['HPCIMG_CONTAINER']};/data/image.sif"}
    job_id = site.cluster.sbatch(script, env=env)
    assert site.cluster.wait(job_id) == "COMPLETED"
    assert site.comment(job_id) == f"two words {TOKEN} container:/data/image.sif"


def test_a_comment_in_json_stays_json(site: Site) -> None:
    env = {"HPCIMG_CONTAINER": "x=/a.sif /b.sif"}
    job_id = site.cluster.sbatch("true", '--comment={"wpps": 3}', env=env)
    assert site.cluster.wait(job_id) == "COMPLETED"
    assert json.loads(site.comment(job_id)) == {"wpps": 3, "container": ["x=/a.sif", "/b.sif"]}


def test_near_misses_are_taken_or_refused(site: Site) -> None:
    command = ["sbatch", "--hold", "--wrap=true"]
    for comment in ('"container:/a.sif"', "a=1,Container:/a.sif", "container test run"):
        result = site.cluster.run([*command, f"--comment={comment}"], user=USERS[0])
        assert result.returncode == 0, result.stderr
        site.cluster.scancel(result.stdout.split()[-1])
    result = site.cluster.run([*command, "--comment=containers:docker://a"], user=USERS[0])
    assert result.returncode != 0
    assert "did you mean container:docker://a" in result.stderr


def test_what_sbatch_leaves_of_a_line_with_a_remark_in_it_is_refused(site: Site) -> None:
    script = "#!/bin/sh\n#SBATCH --comment=container:docker://nvcr.io#nvidia/pytorch:1\ntrue\n"
    result = site.cluster.run(["sbatch"], user=USERS[0], stdin=script)
    assert result.returncode != 0
    assert "nvcr.io is a registry and names no image" in result.stderr


@needs_extra
def test_extra_is_checked_and_reaches_prolog(site: Site) -> None:
    job_id = site.cluster.sbatch("true", "--extra=container:/a.sif", env=IMAGE)
    assert site.cluster.wait(job_id) == "COMPLETED"
    assert site.extra(job_id) == "container:/a.sif"
    refused = ["sbatch", "--extra=container:ubuntu", "--wrap=true"]
    result = site.cluster.run(refused, user=USERS[0])
    assert result.returncode != 0
    assert "hpcimg: in --extra: 'ubuntu' is not a reference" in result.stderr


def test_what_pyxis_reads_from_the_environment(both: Site) -> None:
    env = {"PYXIS_CONTAINER_IMAGE": "registry.example.org#lab/x:1"}
    word = "container:PYXIS_CONTAINER_IMAGE=docker://registry.example.org#lab/x:1"
    job_id = both.cluster.sbatch("true", "--comment=words", env=env)
    assert both.cluster.wait(job_id) == "COMPLETED"
    assert both.comment(job_id) == f"words {word}"
    result = both.cluster.srun("sh", "-c", "echo $SLURM_JOB_ID", env=env)
    assert both.comment(result.stdout.strip()) == word


def test_srun(both: Site) -> None:
    command = ["sh", "-c", "echo $SLURM_JOB_ID"]
    result = both.cluster.srun("--comment=words", *command, env=IMAGE)
    assert result.returncode == 0, result.stderr
    assert both.comment(result.stdout.strip()) == f"words {TOKEN}"


def test_salloc_and_a_step_in_it(both: Site) -> None:
    """A step asks for nothing that could still be staged, so nothing in it is refused."""
    command = ["sh", "-c", "echo $SLURM_JOB_ID; HPCIMG_CONTAINER=ubuntu srun echo step"]
    result = both.cluster.salloc(*command, env=IMAGE)
    assert result.returncode == 0, result.stderr
    job_id, step = result.stdout.split()
    assert both.comment(job_id) == TOKEN
    assert step == "step"
    assert "lua" not in result.stderr


@pytest.mark.parametrize("command", SUBMIT)
def test_a_mistake_in_the_environment_is_refused(both: Site, command: list[str]) -> None:
    result = both.cluster.run(command, user=USERS[0], env=TYPO)
    assert result.returncode != 0
    assert "hpcimg: in HPCIMG_CONTAINER: 'ubuntu:22.04' is not a reference" in result.stderr
    assert HINT in result.stderr


@pytest.mark.parametrize("command", SUBMIT)
def test_a_mistake_in_the_comment_is_refused(site: Site, command: list[str]) -> None:
    comment = "--comment=100%d container:ubuntu:22.04"
    result = site.cluster.run([command[0], comment, *command[1:]], user=USERS[0])
    assert result.returncode != 0
    assert "hpcimg: in the job's comment: 'ubuntu:22.04' is not a reference" in result.stderr
    assert HINT in result.stderr


def test_slurmctld_refuses_a_mistake_in_the_environment_of_sbatch(ctld: Site) -> None:
    result = ctld.cluster.run(["sbatch", "--wrap=true"], user=USERS[0], env=TYPO)
    assert result.returncode != 0
    assert HINT in result.stderr


def test_a_new_comment_is_checked(site: Site) -> None:
    job_id = site.cluster.sbatch("true", "--hold")
    update = ["scontrol", "update", f"job={job_id}"]
    for comment, accepted in ((TOKEN, True), ("container:ubuntu", False)):
        result = site.cluster.run([*update, f"comment={comment}"], user=USERS[0])
        assert (result.returncode == 0) == accepted
    assert site.cluster.job(job_id)["Comment"] == TOKEN
    site.cluster.scancel(job_id)


def test_a_comment_too_long_for_slurm_is_explained(site: Site) -> None:
    env = {"HPCIMG_CONTAINER": f"/{'a' * 600} /{'b' * 600}"}
    result = site.cluster.run(["sbatch", "--wrap=true"], user=USERS[0], env=env)
    assert result.returncode != 0
    assert "1024 is Slurm's limit" in result.stderr


def test_slurm_takes_a_comment_of_the_length_that_we_let_through(site: Site) -> None:
    image = "/" + "a" * (1024 - len("container:/"))
    job_id = site.cluster.sbatch("true", env={"HPCIMG_CONTAINER": image})
    assert site.cluster.wait(job_id) == "COMPLETED"
    assert site.comment(job_id) == f"container:{image}"


@pytest.mark.parametrize("content", [None, "no Lua at all !", "error('broken')"])
def test_jobs_go_on_where_the_grammar_is_missing_or_broken(site: Site, content: str | None) -> None:
    saved, before = site.grammar.read_text(), site.cluster.log("slurmctld")
    site.grammar.unlink()
    try:
        if content is not None:
            site.grammar.write_text(content)
        for env in (TYPO, {}):
            job_id = site.cluster.sbatch("true", env=env)
            assert site.cluster.wait(job_id) == "COMPLETED"
            assert site.comment(job_id) == ""
    finally:
        site.grammar.write_text(saved)
    said = site.cluster.log("slurmctld").removeprefix(before)
    assert "the job goes on, its container images were not" in said


def test_no_lines_in_the_log_for_jobs_without_images(ctld: Site) -> None:
    before = ctld.cluster.log("slurmctld")
    assert ctld.cluster.srun("true").returncode == 0
    assert "lua" not in ctld.cluster.log("slurmctld").removeprefix(before)
