"""Which requests are shared with the other nodes of a job, and what the others import."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from hpcimg import stage
from hpcimg.fetch.contract import Request
from hpcimg.reference import parse

NODES = ("n1", "n2", "n3", "n4")
URI = "https://images.example.org/x.sif"


def front(monkeypatch: pytest.MonkeyPatch, request: Request, *, use: str = "yes") -> object:
    """Return what is put in front for a request, without loading what is not needed."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delitem(sys.modules, "hpcimg.peers.swarm", raising=False)
    config: Any = SimpleNamespace(peers=use, peers_min_nodes=4, site_path="", account="root")
    asked: Any = SimpleNamespace(request=request, config=config)
    openers = stage._openers(config)
    return openers[0](asked, None) if openers else None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "request_",
    [
        Request(parse(URI), 0.0, "1"),
        Request(parse(URI), 0.0, "1", nodes=NODES[:3], node="n1"),
        Request(parse(URI), 0.0, "1", nodes=NODES, node="n9"),
        Request(parse(URI), 0.0, "1", nodes=NODES, node="n1", owner=1000),
        Request(parse("/shared/x.sif"), 0.0, "1", nodes=NODES, node="n1"),
    ],
    ids=["one node", "few nodes", "not one of them", "private", "mounted"],
)
def test_what_has_no_peers_loads_nothing_of_them(
    monkeypatch: pytest.MonkeyPatch, request_: Request
) -> None:
    assert front(monkeypatch, request_) is None
    assert "hpcimg.peers.swarm" not in sys.modules


def test_a_site_that_wants_none_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(parse(URI), 0.0, "1", nodes=NODES, node="n1")
    assert front(monkeypatch, request, use="no") is None


def test_without_libtorrent_auto_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(parse(URI), 0.0, "1", nodes=NODES, node="n1")
    monkeypatch.setattr(stage.importlib.util, "find_spec", lambda _: None)
    assert front(monkeypatch, request, use="auto") is None
    assert "hpcimg.peers.swarm" not in sys.modules
