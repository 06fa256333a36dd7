"""The lab itself: its links have the given rates, and it leaves nothing behind."""

from __future__ import annotations

import pytest

from tests.parts.lab import Lab

pytestmark = pytest.mark.skipif(bool(Lab.missing()), reason=Lab.missing() or "-")
_IMAGE = 1_000_000


def test_nodes_fetch_through_links_of_their_rate() -> None:
    with Lab(2, node_rate=40, origin_rate=10, settings="[policy]\nallow = *\n") as lab:
        before = lab.origin_sent()
        alone = lab.run(1, lab.put(size_bytes=_IMAGE), lab.nodes[:1])
        assert _IMAGE <= lab.origin_sent() - before <= 1.05 * _IMAGE
        assert alone.median_s > _IMAGE * 8 / 10e6 * 0.9
        both = lab.run(2, lab.put(size_bytes=_IMAGE))
        assert set(both.held_s) == {"n1", "n2"}
        assert lab.nodes[1].record(2)["state"] == "ready"
        name, directory = lab.name, lab.directory
    assert not directory.exists()
    assert name not in lab.ip("netns", "list")
