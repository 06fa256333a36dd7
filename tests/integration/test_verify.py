"""Images that the site does not trust are not handed out, whenever they arrived."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.integration.checks import refused, staged
from tests.parts.node import Node
from tests.parts.webserver import WebServer


class Verifying:
    """A node whose site asks a program about each image."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.program = directory / "ask"
        self.calls = directory / "calls"
        self.calls.mkdir(mode=0o777)
        self.calls.chmod(0o777)
        self.write()
        self.turn_on()

    def write(self, last: str = "signed by nobody", code: int = 3) -> None:
        """Write the program."""
        self.program.write_text(
            f"""#!/bin/sh
{{ id -u; sha256sum | cut -c-64; printf '%s\\n' "$@"; }} >"$(mktemp {self.calls}/XXXXXX)"
( : >>/proc/self/fd/0 ) 2>/dev/null && exit 0  # never: it would be open to be written
case "$1" in *trusted*) exit 0;; esac
echo "{last}" >&2
exit {code}
"""
        )
        self.program.chmod(0o755)

    def turn_on(self, how: str = "") -> None:
        self.node.configure(f"[policy]\nverify = {how or self.program}\n")

    def asked(self) -> list[list[str]]:
        """Return what the program was given: uid, digest of the file, arguments."""
        return [path.read_text().splitlines() for path in self.calls.iterdir()]


@pytest.fixture
def verifying(node: Node, open_directory: Path) -> Verifying:
    return Verifying(node, open_directory)


def test_what_a_program_accepts(verifying: Verifying, web: WebServer, sif: bytes) -> None:
    url = web.put("/trusted.sif", sif)
    task = staged(verifying.node, 1, f"container:{url}", sif)
    ((uid, digest, *arguments),) = verifying.asked()
    assert (digest, arguments) == (hashlib.sha256(sif).hexdigest(), [url])
    assert os.geteuid() != 0 or uid != "0"
    assert task.image.stat().st_mode & 0o777 == 0o444
    assert task.image.stat().st_gid == os.getegid()
    staged(verifying.node, 2, f"container:{url}", sif, how="hit")
    assert len(verifying.asked()) == 1
    assert verifying.node.hpcimg("path", url).stdout.strip() == str(task.image)


def test_what_it_refuses(verifying: Verifying, node: Node, url: str) -> None:
    words = ("is not verified", "ask says: signed by nobody", "[policy] verify")
    refused(node, 1, f"container:{url}", "NotAllowed", *words)
    assert node.images() == []
    assert node.record(1)["class"] == "user"


def test_a_program_that_is_not_there(verifying: Verifying, node: Node, url: str) -> None:
    verifying.turn_on("/nonexistent/ask")
    refused(node, 1, f"container:{url}", "NodeError", "/nonexistent/ask cannot say")


@pytest.mark.parametrize("name", ["trusted.sif", "other.sif"])
def test_what_was_cached_before_is_verified_too(
    verifying: Verifying, node: Node, web: WebServer, sif: bytes, name: str
) -> None:
    comment = f"container:{web.put(f'/{name}', sif, etag='1')}"
    verifying.turn_on("none")
    staged(node, 1, comment, sif)
    verifying.turn_on()
    if name == "trusted.sif":
        staged(node, 2, comment, sif)
        staged(node, 3, comment, sif, how="hit")
        assert len(verifying.asked()) == 1
        return
    refused(node, 2, comment, "NotAllowed", "is not verified")
    assert node.hpcimg("path", comment.removeprefix("container:")).returncode == 12
    # Nor where the server does not answer.
    web.remove(f"/{name}")
    node.reboot()
    assert node.stage(3, comment).code == 1


def test_another_name_for_what_was_verified(
    verifying: Verifying, node: Node, web: WebServer, sif: bytes
) -> None:
    staged(node, 1, f"container:{web.put('/trusted.sif', sif)}", sif)
    staged(node, 2, f"container:{web.put('/other.sif', sif)}", sif)
    assert len(verifying.asked()) == 1


@pytest.mark.skipif(
    shutil.which("apptainer") is not None, reason="this host has Apptainer, which takes its place"
)
def test_without_apptainer(verifying: Verifying, node: Node, url: str) -> None:
    verifying.turn_on("sif")
    refused(node, 1, f"container:{url}", "MissingTool", "neither Apptainer nor Singularity")
