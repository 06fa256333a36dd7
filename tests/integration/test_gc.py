"""hpcimg gc: leases of jobs that ended unseen, orphans, and eviction by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.checks import let_pass, refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import ROOT, Node
from tests.parts.webserver import WebServer

MIB = 1 << 20


def squeue(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a squeue into PATH; $job is the job that it is asked about."""
    program = directory / "bin" / "squeue"
    program.parent.mkdir()
    find = 'for word in "$@"; do case $word in --jobs=*) job=${word#--jobs=};; esac; done'
    program.write_text(f"#!/bin/sh\n{find}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_gc_drops_what_ended_jobs_hold(
    node: Node, url: str, sif: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in (1, 2, 3):
        staged(node, job, f"container:{url}", sif)
    refused(node, 4, "container:ubuntu", "BadReference")
    say = "1) echo RUNNING;; 2) echo COMPLETED;; *) echo 'Invalid job id specified' >&2; exit 1;;"
    squeue(tmp_path, f"case $job in {say} esac", monkeypatch)
    would = node.hpcimg_json("gc", "--dry-run")
    assert (would["dry_run"], would["ended_jobs"]) == (True, ["2", "3", "4"])
    assert {job for _, job in node.leases()} == {"1", "2", "3"}
    done = node.hpcimg("gc")
    assert done.returncode == 0
    assert "job 2: ended, its leases dropped" in done.stdout
    assert {job for _, job in node.leases()} == {"1"}
    assert [path.name for path in node.state.glob("jobs/*")] == ["1"]


@pytest.mark.parametrize("script", ["echo 'Unable to contact slurm controller' >&2; exit 1", ""])
def test_gc_drops_nothing_where_slurm_does_not_answer(
    node: Node, url: str, sif: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    staged(node, 1, f"container:{url}", sif)
    if script:
        squeue(tmp_path, script, monkeypatch)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))  # no squeue at all
    done = node.hpcimg("gc", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["ended_jobs"] == []
    assert "leases were not checked" in done.stderr
    assert {job for _, job in node.leases()} == {"1"}


def test_gc_evicts_down_to_the_low_watermark(node: Node, web: WebServer, make_sif: MakeSif) -> None:
    made = [make_sif(size_bytes=MIB) for _ in range(4)]
    for number, data in enumerate(made):
        assert node.hpcimg("stage", web.put(f"/{number}.sif", data)).returncode == 0
        let_pass(node, 600)
    settings = "max_size = 4.2M\nhigh_watermark = 90%\nlow_watermark = 50%\nmin_age = 0"
    (node.directory / "conf.d" / "z.conf").write_text(f"[cache]\n{settings}\n")
    before = sorted(path.name for path in node.images())
    would = node.hpcimg("gc", "--dry-run")
    assert "2.0 MiB would be freed of 1.9 MiB wanted: 4.0 MiB eligible" in would.stdout
    assert sorted(path.name for path in node.images()) == before
    fields = node.hpcimg_json("gc")
    assert fields["freed_bytes"] == 2 * len(made[0])
    assert sorted(path.read_bytes() for path in node.images()) == sorted(made[2:])
    assert set(fields["evicted"]) == {name.removesuffix(".sif") for name in before} - {
        path.stem for path in node.images()
    }


def gc_an_hour_later(node: Node, *arguments: str) -> int:
    """Run gc as if all files were old; return how many orphans it removed."""
    program = (
        "import sys; from hpcimg.cache import store; store._ORPHAN_AGE_S = -1.0;"
        "from hpcimg.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "gc", "--json", *arguments],
        env={**os.environ, "HPCIMG_CONF": str(node.conf), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    orphans = json.loads(done.stdout)["orphans"]
    assert isinstance(orphans, int)
    return orphans


@pytest.mark.parametrize(("lost", "left"), [("images", 2), ("meta", 2), ("refs", 0)])
def test_gc_clears_away_what_belongs_to_no_image(
    node: Node, url: str, sif: bytes, lost: str, left: int
) -> None:
    staged(node, 1, f"container:{url}", sif)
    node.epilog(1)
    assert gc_an_hour_later(node) == 0
    [path] = node.cache.glob(f"{lost}/*")
    path.unlink()
    # Young ones may belong to an image that is about to appear.
    assert node.hpcimg_json("gc")["orphans"] == 0
    assert gc_an_hour_later(node, "--dry-run") == 0
    assert gc_an_hour_later(node) == left
    if left:
        kept = [
            path for name in ("images", "meta", "refs") for path in node.cache.glob(f"{name}/*")
        ]
        assert kept == []
    staged(node, 2, f"container:{url}", sif)


def test_gc_on_a_node_that_did_nothing_yet(node: Node) -> None:
    would = node.hpcimg("gc", "--dry-run")
    assert f"{node.cache} cannot be used: No such file" in would.stderr
    assert not node.cache.exists()
    assert node.hpcimg("gc").returncode == 0
