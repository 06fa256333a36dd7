"""`hpcimg check`: it predicts what happens to the job, and fetches nothing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from hpcimg.image.architecture import go_name
from tests.integration.conftest import MakeSif
from tests.parts import images, layouts
from tests.parts.node import ROOT, Node
from tests.parts.ociimages import make_layer, push_image, push_index
from tests.parts.registry import PASSWORD, Registry
from tests.parts.registryclient import auth_file
from tests.parts.users import Homes, among_users
from tests.parts.webserver import WebServer

MISSING = Registry.missing() or images.missing()
pytestmark = pytest.mark.skipif(MISSING != "", reason=MISSING)
JO = 3_000_001


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


def check(node: Node, *texts: str) -> list[dict[str, Any]]:
    found = node.hpcimg_json("check", *texts)["images"]
    assert isinstance(found, list)
    return found


def insecure(registry: Registry, more: str = "") -> str:
    return f"[registry {registry.host}]\ninsecure = yes\n{more}"


def test_an_image_in_layers(node: Node, registry: Registry) -> None:
    node.configure(insecure(registry, "[stage]\nformat = squashfs\n"))
    layers = [make_layer({"bin/a": os.urandom(3000)}), make_layer({"bin/b": os.urandom(2000)})]
    others = [make_layer({"x": b"x"})]
    index = push_index(
        registry,
        "lab/check",
        "1",
        [
            push_image(registry, "lab/check", "here", layers),
            push_image(registry, "lab/check", "there", others, architecture="s390x"),
        ],
    )
    uri = f"docker://{registry.host}/lab/check:1"
    [found] = check(node, uri)
    assert found == {
        "uri": uri,
        "would_work": True,
        "digest": index,
        "pinned": f"docker://{registry.host}/lab/check@{index}",
        "bytes": sum(len(layer.data) for layer in layers),
        "layers": 2,
        "processors": [go_name(), "s390x"],
        "format": "squashfs",
        "notes": [],
    }
    for layer in layers:
        digest = f"sha256:{hashlib.sha256(layer.data).hexdigest()}"
        assert registry.blob_gets(digest) == []
    assert not node.cache.exists()
    assert not node.state.exists()
    # What it says to write is taken.
    assert check(node, found["pinned"])[0]["digest"] == index


def test_files(node: Node, web: WebServer, make_sif: MakeSif, tmp_path: Path) -> None:
    sif = make_sif(size_bytes=8 << 20)
    (tmp_path / "x.sif").write_bytes(sif)
    url = web.put("/x.sif", sif, etag='"1"')
    (tmp_path / "x.sif").chmod(0o644)
    on_web, mounted = check(node, url, str(tmp_path / "x.sif"))
    assert (on_web["bytes"], on_web["format"]) == (len(sif), "")
    assert "known only after it was fetched" in on_web["notes"][0]
    assert web.requests()[0].sent_bytes < len(sif)
    if os.geteuid() != 0:  # pytest's directory is for one account alone
        assert (mounted["format"], mounted["bytes"]) == ("sif", len(sif))


@pytest.mark.skipif(layouts.missing() != "", reason=layouts.missing())
def test_layouts_and_archives(registry: Registry, open_directory: Path) -> None:
    node = Node(open_directory)
    layer = make_layer({"x": os.urandom(1000)})
    push_image(registry, "lab/saved", "1", [layer])
    layouts.save(registry, "lab/saved:1", open_directory)
    uris = [f"{scheme}:{open_directory}/{scheme}" for scheme in layouts.SCHEMES]
    for uri, found in zip(uris, check(node, *uris), strict=True):
        assert found["would_work"], found
        assert (found["uri"], found["layers"], found["pinned"]) == (uri, 1, "")
        assert found["processors"] == [go_name()]


def test_it_fails_in_the_words_of_the_job(
    node: Node, registry: Registry, web: WebServer, open_directory: Path, make_sif: MakeSif
) -> None:
    node.configure(insecure(registry, "[policy]\ndeny = *secret*\nmax_image_size = 100K\n"))
    push_image(registry, "lab/other", "1", [make_layer({"x": b"x"})], architecture="s390x")
    push_image(registry, "lab/large", "1", [make_layer({"x": os.urandom(200_000)})])
    other = open_directory / "other.sif"
    other.write_bytes(make_sif(size_bytes=90_000, arch="s390x"))
    (open_directory / "text.sif").write_text("no image")
    references = [
        "ubuntu:22.04",
        "docker://127.0.0.1:1/secret/x",
        f"docker://{registry.host}/lab/none:1",
        f"docker://{registry.host}/lab/other:1",
        f"docker://{registry.host}/lab/large:1",
        web.url("/none.sif"),
        "/no/such.sif",
        str(other),
        str(open_directory / "text.sif"),
    ]
    found = check(node, *references)
    said = node.hpcimg("check", *references).stdout
    assert said.count(": would fail\n") == len(references)
    for job, (reference, each) in enumerate(zip(references, found, strict=True), start=1):
        task = node.stage(job, f"container:{reference}")
        assert (each["would_work"], f"hpcimg: {each['message']}") == (False, task.printed)
        assert f"  {task.printed}\n" in said
    assert node.hpcimg("check", "/no/such.sif", "ubuntu:22.04").returncode == 12


def as_user(directory: Path, homes: Homes, conf: Path, *arguments: str) -> dict[str, Any]:
    """Run hpcimg as a user without any rights on the node; return its JSON output."""
    become = ["setpriv", f"--reuid={JO}", f"--regid={JO}", "--clear-groups"]
    # The Python of the tests may be where only its owner can enter.
    try:
        python = subprocess.check_output([ROOT / "bin/find-python"], text=True).strip()
    except subprocess.CalledProcessError:
        pytest.skip("there is no Python 3.11 or newer in /usr/bin")
    places = [str(ROOT), str(Path(requests.__file__).parents[1])]
    program = f"import sys; sys.path[:0] = {places}; from hpcimg.cli.main import main; main()"
    command = [python, "-I", "-c", program, *arguments, "--json"]
    done = subprocess.run(
        among_users(homes.etc, [*become, *command]),
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HPCIMG_CONF": str(conf)},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert PASSWORD not in done.stdout + done.stderr
    fields = json.loads(done.stdout)
    assert isinstance(fields, dict)
    return fields


@pytest.mark.skipif(Homes.missing() != "", reason=Homes.missing())
def test_an_ordinary_user_asks_with_a_login_of_their_own(
    open_directory: Path, make_sif: MakeSif
) -> None:
    homes = Homes(open_directory, {"hpcimg-jo": JO})
    node = Node(open_directory)
    with Registry(basic=True) as registry:
        site = open_directory / "site.json"
        site.write_text("{}")
        site.chmod(0o400)
        node.configure(insecure(registry, f"auth_file = {site}\n"))
        (open_directory / "x.sif").write_bytes(make_sif())
        registry.push_sif(open_directory / "x.sif", "lab/x", "1")
        uri = f"oras://{registry.host}/lab/x:1"
        [without] = as_user(open_directory, homes, node.conf, "check", uri)["images"]
        assert (without["error"], without["would_work"]) == ("Forbidden", False)
        assert "A node may use the site's login" in without["notes"][0]
        homes.keep("hpcimg-jo", ".docker/config.json", auth_file(registry.host))
        [found] = as_user(open_directory, homes, node.conf, "check", uri)["images"]
        assert (found["would_work"], found["format"]) == (True, "sif")
        assert found["bytes"] == (open_directory / "x.sif").stat().st_size


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_looks_with_the_rights_of_the_account_that_fetches(open_directory: Path) -> None:
    node = Node(open_directory)
    private = open_directory / "private.sif"
    private.write_text("for root")
    private.chmod(0o600)
    [found] = check(node, str(private))
    assert found["error"] == "Forbidden"
