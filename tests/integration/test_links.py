"""Links under the names that workflow managers look for: a job's own, and those of the command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpcimg.managers import names
from tests.integration.checks import refused, staged
from tests.integration.conftest import MakeSif
from tests.parts.node import Node
from tests.parts.webserver import WebServer

USER, OTHER = 54321, 54322


def as_uid(uid: int, *argv: str) -> subprocess.CompletedProcess[str]:
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return subprocess.run([*become, *argv], capture_output=True, text=True, check=False)


def test_a_job_has_links_of_its_own(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    comment = f"container:{url} hpcimg:links=nextflow,snakemake"
    for job, how in ((1, "fetched"), (2, "hit")):
        task = staged(node, job, comment, sif, how=how)
        place = Path(task.exports["HPCIMG_LINKS"])
        assert place == node.state / "jobs" / str(job) / "links"
        assert task.exports["NXF_SINGULARITY_LIBRARYDIR"] == f"{place}/nextflow"
        assert task.exports["NXF_APPTAINER_LIBRARYDIR"] == f"{place}/nextflow"
        assert "CWL_SINGULARITY_CACHE" not in task.exports
        for manager in ("nextflow", "snakemake"):
            [name] = names(manager, [url])
            assert (place / manager / name).resolve() == task.image
        assert sorted(path.name for path in place.iterdir()) == ["nextflow", "snakemake"]
    assert web.count("GET") == 1
    # A requeued job begins with nothing of its first run.
    task = staged(node, 1, f"container:{url} hpcimg:links=cwltool", sif)
    assert os.listdir(task.exports["HPCIMG_LINKS"]) == ["cwltool"]
    node.epilog(1)
    node.epilog(2)
    assert list((node.state / "jobs").iterdir()) == []


def test_a_job_that_did_not_ask_has_none(node: Node, url: str, sif: bytes) -> None:
    task = staged(node, 1, f"container:{url}", sif)
    assert "HPCIMG_LINKS" not in task.exports
    assert sorted(os.listdir(node.state / "jobs/1")) == ["record.json", "task"]


def test_a_manager_that_is_not_known(node: Node, url: str) -> None:
    comment = f"container:{url} hpcimg:links=galaxy"
    task = refused(node, 1, comment, "BadReference", "no workflow manager galaxy is known")
    assert task.printed.endswith("some of cwltool miniwdl nextflow snakemake.")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act for several users")
def test_the_links_are_for_their_user_and_changed_by_nobody(
    open_directory: Path, web: WebServer, url: str, sif: bytes
) -> None:
    node = Node(open_directory, uid=USER)
    place = staged(node, 1, f"container:{url} hpcimg:links=nextflow", sif).exports["HPCIMG_LINKS"]
    [name] = names("nextflow", [url])
    assert as_uid(USER, "ls", f"{place}/nextflow").stdout == f"{name}\n"
    assert as_uid(USER, "head", "-c1", f"{place}/nextflow/{name}").returncode == 0
    assert as_uid(USER, "touch", f"{place}/nextflow/x").returncode == 1
    assert as_uid(USER, "rm", f"{place}/nextflow/{name}").returncode == 1
    assert as_uid(OTHER, "ls", place).returncode == 2
    assert as_uid(OTHER, "ls", f"{place}/nextflow/{name}").returncode == 2


def test_the_command(node: Node, url: str, sif: bytes, make_sif: MakeSif, web: WebServer) -> None:
    other = web.put("/other.sif", make_sif(), etag='"2"')
    image = staged(node, 1, f"container:{url}", sif).image
    links = node.directory / "links"
    assert node.hpcimg("link", "--as", "cwltool", str(links), other).returncode == 12
    assert not links.exists()
    [name] = names("nextflow", [url])
    done = node.hpcimg("link", "--as", "nextflow", str(links))
    assert done.stdout == f"{links}/{name} -> {image}\n"
    assert (links / name).read_bytes() == sif
    # Again, where one leads to an image that is gone.
    (links / name).unlink()
    (links / name).symlink_to("/gone")
    made = node.hpcimg_json("link", "--as", "nextflow", str(links), url)["links"]
    assert made == {str(links / name): str(image)}
    assert os.readlink(links / name) == str(image)
    # What is no link was pulled by somebody.
    (links / name).unlink()
    (links / name).write_text("pulled")
    assert node.hpcimg("link", "--as", "nextflow", str(links)).returncode == 10
    assert (links / name).read_text() == "pulled"
    assert os.listdir(links) == [name]
