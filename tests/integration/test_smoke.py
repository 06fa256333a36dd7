from __future__ import annotations

from pathlib import Path

from tests.parts.images import make_sif
from tests.parts.node import Node
from tests.parts.webserver import WebServer


def test_smoke(node: Node, web: WebServer, tmp_path: Path) -> None:
    sif = make_sif(tmp_path / "x.sif", {"hello": b"world"})
    url = web.put("/x.sif", sif.read_bytes())
    task = node.stage(1, f"container:{url}")
    assert task.code == 0, (task, node.log())
    assert task.image.read_bytes() == sif.read_bytes()
    task = node.stage(2, f"container:{url}")
    assert node.record(2)["images"][0]["source"] == "hit"
    assert web.count("GET") == 1
    assert node.stage(3, "container:ubuntu").code == 1
