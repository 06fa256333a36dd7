"""Cached failures: one request for many jobs, for a while."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
import time
from pathlib import Path

import pytest

from hpcimg import stage
from hpcimg.config import load as config
from hpcimg.errors import Forbidden
from hpcimg.fetch.contract import Request
from hpcimg.node import open_cache
from hpcimg.reference import parse
from hpcimg.worker import monitor, protocol
from hpcimg.worker.accounts import User
from hpcimg.worker.process import Sandbox
from tests.integration.checks import let_pass, refused, staged
from tests.integration.test_node_trouble import AS_ROOT
from tests.parts.node import Node
from tests.parts.webfaults import Html, Status
from tests.parts.webserver import WebServer


def test_two_jobs_and_one_request(node: Node, web: WebServer, url: str) -> None:
    web.remove("/x.sif")
    refused(node, 1, f"container:{url}", "NotFound", "answered 404")
    said = refused(node, 2, f"container:{url}", "NotFound", "answered 404").printed
    assert "Cached result, " in said
    assert web.count() == 1


def test_only_for_a_while(node: Node, web: WebServer, url: str) -> None:
    web.script("/x.sif", [Status(403)])
    refused(node, 1, f"container:{url}", "Forbidden")
    let_pass(node, 10)
    refused(node, 2, f"container:{url}", "Forbidden", "next try in ")
    assert web.count() == 1
    let_pass(node, 50)
    task = node.stage(3, f"container:{url}")
    assert task.code == 0
    # What was found since is not forgotten for what was before.
    assert list(node.state.glob("failures/*")) == []


def test_it_can_be_switched_off(node: Node, web: WebServer, url: str) -> None:
    node.configure("[stage]\nerror_ttl = 0\n")
    web.script("/x.sif", [Status(404)] * 2)
    for job in 1, 2:
        refused(node, job, f"container:{url}", "NotFound")
    assert web.count() == 2


def test_what_is_no_image_is_not_fetched_again(node: Node, web: WebServer, url: str) -> None:
    web.script("/x.sif", [Html()])
    for job in 1, 2:
        refused(node, job, f"container:{url}", "NotAnImage")
    assert web.count() == 1


def test_what_passes_is_not_remembered(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    web.script("/x.sif", [Status(503, retry_after="3600")])
    refused(node, 1, f"container:{url}", "Unreachable")
    staged(node, 2, f"container:{url}", sif, how="fetched")


def test_hpcimg_stage_asks_anew(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    web.script("/x.sif", [Status(404)] * 2)
    refused(node, 1, f"container:{url}", "NotFound")
    assert node.hpcimg("stage", url).returncode == 12
    assert web.count() == 2
    assert node.hpcimg("stage", url).returncode == 0
    staged(node, 2, f"container:{url}", sif, how="hit")


def test_under_another_configuration_it_does_not_count(
    node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    node.configure("[policy]\nmax_image_size = 1000\n")
    refused(node, 1, f"container:{url}", "TooLarge")
    node.configure("[policy]\nmax_image_size = 1G\n")
    staged(node, 2, f"container:{url}", sif)


def test_what_the_policy_refuses_is_not_remembered(node: Node, url: str, sif: bytes) -> None:
    node.configure("[policy]\ndeny = *\n")
    refused(node, 1, f"container:{url}", "NotAllowed")
    node.configure()
    staged(node, 2, f"container:{url}", sif)


def test_a_file_that_appears_is_found_at_once(node: Node, sif: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        path = Path(directory) / "late.sif"
        refused(node, 1, f"container:{path}", "NotFound")
        path.write_bytes(sif)
        path.chmod(0o644)
        staged(node, 2, f"container:{path}", sif)


def test_without_the_state_directory(node: Node, web: WebServer, url: str, sif: bytes) -> None:
    web.script("/x.sif", [Status(404)] * 2)
    refused(node, 1, f"container:{url}", "NotFound")
    node.reboot()
    refused(node, 2, f"container:{url}", "NotFound")
    assert web.count() == 2
    [path] = node.state.glob("failures/*")
    path.write_text("{")
    staged(node, 3, f"container:{url}", sif)


def test_what_was_before_a_reboot_does_not_count(node: Node, web: WebServer, url: str) -> None:
    web.remove("/x.sif")
    refused(node, 1, f"container:{url}", "NotFound")
    [path] = node.state.glob("failures/*")
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))
    refused(node, 2, f"container:{url}", "NotFound")
    assert web.count() == 2


@AS_ROOT
def test_what_the_node_and_each_user_may_not_read_is_remembered_apart(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []

    def forbidden(order: protocol.Fetch, _: int, __: object, sandbox: Sandbox) -> None:
        assert sandbox.account
        asked.append((sandbox.account.uid, order.settings.as_user))
        raise Forbidden("no")

    monkeypatch.setattr(monitor, "fetch", forbidden)
    node.configure(f"[stage]\naccount = hpcimg\n[registry h.example]\nauth_file = {node.conf}\n")
    loaded = config.load(str(node.conf))
    cache = open_cache(loaded)
    ours, games, mail = (pwd.getpwnam(name).pw_uid for name in ("hpcimg", "games", "mail"))

    def ask(uid: int, host: str = "other.example") -> list[tuple[int, bool]]:
        asked.clear()
        text = f"docker://{host}/x:1"
        request = Request(parse(text), time.monotonic() + 9, text=text)
        with pytest.raises(Forbidden):
            stage.stage(loaded, cache, request, user=User(uid))
        return asked[:]

    assert ask(games) == [(ours, False), (games, True)]
    assert ask(games) == []
    assert ask(mail) == [(mail, True)]
    # The site's credentials serve each user apart, and so does what they may not read.
    assert ask(games, "h.example") == [(ours, False), (ours, False), (games, True)]
    assert ask(games, "h.example") == []
    assert ask(mail, "h.example") == [(ours, False), (mail, True)]


def test_old_ones_are_swept(node: Node, web: WebServer) -> None:
    for number in range(3):
        refused(node, number, f"container:{web.url(f'/{number}.sif')}", "NotFound")
    before = set(node.state.glob("failures/*"))
    for path in before:
        os.utime(path, (0, 0))
    refused(node, 9, f"container:{web.url('/9.sif')}", "NotFound")
    [left] = node.state.glob("failures/*")
    assert left not in before
