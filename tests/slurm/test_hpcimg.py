"""Real jobs with images, as their users see them."""

from __future__ import annotations

import json
import pwd
import shutil
from pathlib import Path

import pytest

from tests.parts.daemon import wait_until
from tests.parts.node import ROOT
from tests.parts.site import Site
from tests.parts.slurmclient import USERS
from tests.parts.webfaults import Slow, Status
from tests.slurm.checks import Gate, completed, failed, settled, undrained
from tests.slurm.test_submit_filters import HAS_LUA

SIZE = 1 << 20


def read(site: Site, variable: str = "HPCIMG_IMAGE") -> str:
    """Return a command that prints the "hello" of the image in a variable, if it is complete."""
    return f'{site.read_image} "${variable}" hello'


# What works


def test_one_line_is_all_that_a_job_needs(site: Site) -> None:
    url = site.put("one")
    lines = [
        f"#SBATCH --comment=container:{url}",
        'echo "$HPCIMG_IMAGE"',
        read(site),
        "srun printenv HPCIMG_IMAGE",
        f"srun {read(site)}",
        f"cat {site.node('n1').state}/jobs/$SLURM_JOB_ID/record.json",
    ]
    job = site.cluster.sbatch("\n".join(["#!/bin/sh", *lines]))
    [output] = completed(site, job)
    path, content, in_step, read_in_step, record = output.splitlines()
    assert Path(path) in site.node("n1").images()
    assert (content, in_step, read_in_step) == ("one", path, "one")
    assert json.loads(record)["images"][0]["uri"] == url


def test_jobs_that_start_at_once_wait_for_one_download(site: Site) -> None:
    url = site.put("shared", size_bytes=SIZE)
    node = site.node("n1")
    with site.web.hold("/shared.sif", after_bytes=SIZE // 2) as hold:
        jobs = [
            site.cluster.sbatch(
                read(site), "--nodelist=n1", f"--comment=container:{url}", user=user
            )
            for user in (*USERS, USERS[0])
        ]
        hold.wait_reached()

        def all_but_one_wait() -> bool:
            log = node.log()
            return sum(f"job {job} waits for {url}" in log for job in jobs) == len(jobs) - 1

        wait_until(all_but_one_wait, what="those who wait to say so")
        wait_until(
            lambda: site.status("n1")["staging"][0]["bytes"] > 0,
            what="the progress",
        )
        [work] = site.status("n1")["staging"]
        assert (work["phase"], work["uri"]) == ("fetching", url)
        assert work["total"] == SIZE
        assert int(work["job"]) in jobs
        assert "fetching  [" in node.hpcimg("status").stdout
        assert [site.cluster.output(job) for job in jobs] == [""] * len(jobs)
    assert completed(site, *jobs) == ["shared\n"] * len(jobs)
    assert site.web.count("GET", "/shared.sif") == 1


def test_each_node_of_a_job_fetches_once(site: Site) -> None:
    reference = site.push("wide")
    step = f"srun --nodes=2 sh -c 'echo $SLURMD_NODENAME; {read(site)}'"
    for gets in 2, 2:
        job = site.cluster.sbatch(
            step, "--nodes=2", "--nodelist=n1,n2", f"--comment=container:{reference}"
        )
        [output] = completed(site, job)
        assert sorted(output.split()) == ["n1", "n2", "wide", "wide"]
        paths = [line.path for line in site.registry.blob_gets()]
        assert sum("/lab/wide/" in path for path in paths) == gets


def test_the_nodes_of_a_job_run_one_version_of_a_tag(site: Site, open_directory: Path) -> None:
    """One of them has cached an earlier version within tag_ttl, and the other one none."""
    shared = open_directory / "site"
    shared.mkdir(mode=0o755)
    site.configure(f"[site]\npath = {shared}\n")
    url = site.put("version")
    comment = f"--comment=container:{url}"
    completed(site, site.cluster.sbatch("true", "--nodelist=n1", comment))
    site.web.put("/version.sif", site.image("later").read_bytes(), etag='"2"')
    for path in shared.glob("v*/refs/*"):
        path.unlink()
    step = f"srun --nodes=2 sh -c '{read(site)}'"
    [output] = completed(site, site.cluster.sbatch(step, "--nodes=2", "--nodelist=n1,n2", comment))
    assert len(set(output.splitlines())) == 1
    # Which cluster it was is part of the name.
    [record] = shared.glob("v*/jobs/*")
    assert record.name.split(".")[0] not in ("", "0")


def test_images_with_names(site: Site) -> None:
    names = ["first", "second", "third"]
    urls = [site.put(name) for name in names]
    comment = f"a note; container:A={urls[0]}\n\tcontainer:{urls[1]};container:B_2={urls[2]}"
    lines = [read(site, f"HPCIMG_IMAGE{end}") for end in ("", "_A", "_B_2")]
    job = site.cluster.sbatch("\n".join([*lines, 'echo "$HPCIMG_IMAGES"']), f"--comment={comment}")
    [output] = completed(site, job)
    *contents, paths = output.splitlines()
    assert contents == ["first", "first", "third"]
    assert len(paths.split(":")) == 3


@pytest.mark.parametrize("words", [["srun"], ["salloc", "srun"]])
def test_srun_and_salloc(site: Site, words: list[str]) -> None:
    url = site.put("-".join(words))
    comment = f"--comment=container:{url}"
    argv = [words[0], comment, *words[1:], "sh", "-c", read(site)]
    result = site.cluster.run(argv, user=USERS[0])
    assert (result.returncode, result.stdout) == (0, "-".join(words) + "\n"), result.stderr


@pytest.mark.skipif(bool(Site.missing()), reason=Site.missing())
@pytest.mark.skipif(not HAS_LUA, reason="Slurm's Lua plugins are missing")
def test_an_image_in_the_environment() -> None:
    with Site(nodes=2, lua=[ROOT / "etc" / "cli_filter.lua"]) as site:
        env = {"HPCIMG_CONTAINER": site.put("one")}
        job = site.cluster.sbatch(read(site), env=env)
        assert completed(site, job) == ["one\n"]
        for words in (["srun"], ["salloc", "srun"]):
            argv = [*words, "sh", "-c", read(site)]
            result = site.cluster.run(argv, user=USERS[0], env=env)
            assert result.stdout == "one\n", result.stderr
        settled(site)


@pytest.mark.parametrize("comment", ["", "container ship, 20 ft"])
def test_a_job_without_an_image_is_left_alone(site: Site, comment: str) -> None:
    script = f"env | grep HPCIMG; ls {site.node('n1').state}/jobs/"
    job = site.cluster.sbatch(f"{script}\necho end", "--nodelist=n1", f"--comment={comment}")
    assert completed(site, job)[0].splitlines()[-1] == "end"


def test_a_file_that_only_its_owner_may_read(site: Site) -> None:
    path = site.image("private")
    path.chmod(0o600)
    shutil.chown(path, USERS[0])
    script = f'echo "$HPCIMG_IMAGE"\n{read(site)}'
    submit = [script, "--nodelist=n1", f"--comment=container:{path}"]
    [output] = completed(site, site.cluster.sbatch(*submit, user=USERS[0]))
    image, content = output.splitlines()
    uid = pwd.getpwnam(USERS[0]).pw_uid
    assert Path(image).parent == site.node("n1").cache / "users" / str(uid)
    assert content == "private"
    said = failed(site, site.cluster.sbatch(*submit, user=USERS[1]))
    assert said.startswith(f"hpcimg: {path} may not be read")


# What is refused


@pytest.mark.parametrize("words", [["sbatch"], ["srun"], ["salloc", "srun"]])
def test_a_wrong_name_fails_the_job_and_not_the_node(site: Site, words: list[str]) -> None:
    comment = f"--comment=container:{site.web.url('/no-such.sif')}"
    if words == ["sbatch"]:
        said = failed(site, site.cluster.sbatch("echo started", comment))
    else:
        argv = [words[0], comment, *words[1:], "echo", "started"]
        result = site.cluster.run(argv, user=USERS[0])
        assert result.returncode != 0
        said = result.stdout
    assert said.startswith(f"hpcimg: there is nothing at {site.web.url('/no-such.sif')}: ")
    assert "404" in said
    assert "Check the spelling" in said
    assert "started" not in said
    undrained(site)


def test_a_wrong_tag_in_a_registry(site: Site) -> None:
    reference = site.push("tagged").replace(":1.0", ":9.9")
    said = failed(site, site.cluster.sbatch("true", f"--comment=container:{reference}"))
    assert f"hpcimg: there is nothing at {reference}" in said


def test_a_node_that_gets_no_image_fails_its_tasks_alone(site: Site) -> None:
    url = site.put("here-only")
    comment = f"--comment=container:{url}"
    completed(site, site.cluster.sbatch("true", "--nodelist=n1", comment))
    site.web.script("/here-only.sif", [Status(404)])
    job = site.cluster.sbatch(f"srun {read(site)}", "--nodelist=n1,n2", comment)
    said = failed(site, job)
    assert "here-only\n" in said
    assert f"hpcimg: there is nothing at {url}" in said


@pytest.mark.parametrize(
    ("comment", "hint"),
    [
        ("container:ubuntu:22.04", "did you mean docker://ubuntu:22.04"),
        ("container:", "Write container:URI"),
        ("container:x=/a.sif container:x=/b.sif", "gives the name x to two images"),
        ("container:https://x.example.org/\x1b[31m\x07\x01.sif", "\\x1b[31m\\x07\\x01"),
        ("container:/a.sif'; $(touch x) `touch y`", "hpcimg: "),
    ],
)
def test_a_malformed_comment_fails_the_job_and_not_the_node(
    site: Site, comment: str, hint: str
) -> None:
    said = failed(site, site.cluster.sbatch("echo started", f"--comment={comment}"))
    ours, slurms = said.splitlines()
    assert ours.startswith("hpcimg: ")
    assert hint in ours
    assert ours.isprintable()
    assert "TaskProlog failed" in slurms


# Eviction


def test_the_epilog_evicts_what_no_job_uses(site: Site) -> None:
    site.configure(
        "[cache]\nmax_size = 3M\nhigh_watermark = 50%\nlow_watermark = 40%\nmin_age = 0s\n"
    )
    node, gate = site.node("n3"), Gate(site.directory / "evict.gate")
    urls = {name: site.put(name, size_bytes=SIZE) for name in ("in-use", "idle")}
    user = site.cluster.sbatch(
        f"{gate.wait}\n{read(site)}", "--nodelist=n3", f"--comment=container:{urls['in-use']}"
    )
    gate.reached(site, user)
    other = site.cluster.sbatch(read(site), "--nodelist=n3", f"--comment=container:{urls['idle']}")
    assert completed(site, other) == ["idle\n"]
    assert [image["uris"] for image in node.hpcimg_json("ls")["images"]] == [[urls["in-use"]]]
    gate.open()
    assert completed(site, user) == ["at the gate\nin-use\n"]
    assert site.status("n3")["counts"]["evict"] >= 1


# Slurm's timers


def test_a_step_waits_for_the_node_that_stages_longest(site: Site) -> None:
    """Longer than MessageTimeout and BatchStartTimeout together by default, 10 s each."""
    url = site.put("slow", size_bytes=SIZE)
    comment = f"--comment=container:{url}"
    completed(site, site.cluster.sbatch("true", "--nodelist=n1", comment))
    site.web.script("/slow.sif", [Slow(SIZE / 25)])
    step = f"srun sh -c 'echo $SLURMD_NODENAME; {read(site)}'"
    script = f"echo started at $(date +%s)\n{step}\necho ended at $(date +%s)"
    job = site.cluster.sbatch(script, "--nodelist=n1,n2", comment)
    [output] = completed(site, job)
    # 26.05 says "Prolog hung on node n2" after a while, and means no harm.
    first, *middle, last = [line for line in output.splitlines() if "Prolog hung" not in line]
    assert sorted(middle) == ["n1", "n2", "slow", "slow"]
    # The batch script was not held until n2 was ready; its step was.
    assert int(last.split()[-1]) - int(first.split()[-1]) >= 20
    assert site.cluster.job(job)["Restarts"] == "0"
