"""Who does what: root verifies and publishes, another process fetches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.checks import finish, got, refused, staged
from tests.integration.conftest import Start
from tests.parts.daemon import TIMEOUT_S, wait_until
from tests.parts.node import Node
from tests.parts.processes import descendants, gone, status_of
from tests.parts.webfaults import Status
from tests.parts.webserver import WebServer

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@pytest.fixture
def more_groups() -> Iterator[None]:
    """Be in more groups than one, as slurmd may be."""
    before = os.getgroups()
    os.setgroups([0, 4])
    yield
    os.setgroups(before)


@AS_ROOT
@pytest.mark.usefixtures("more_groups")
def test_what_touches_the_network_is_not_root(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    with web.hold("/x.sif", after_bytes=100_000) as hold:
        prolog = start(node, 1, f"container:{url}")
        hold.wait_reached()
        *_, parent, child = descendants(prolog.pid)
        seen = status_of(child)
        assert set(status_of(prolog.pid)["Groups"]) == {"0", "4"}
        assert "0" not in {*seen["Uid"], *seen["Gid"]}
        assert (seen["Groups"], seen["CapEff"], seen["NoNewPrivs"]) == ([], ["0" * 16], ["1"])
        assert set(status_of(parent)["Uid"]) == {"0"}
        # The one has no way to the network, the other no file of the cache but what it was handed.
        assert internet_sockets(parent) == []
        assert len(internet_sockets(child)) == 1
        below = [name for name in open_files(child) if name.startswith(str(node.directory))]
        assert [Path(name).parent for name in below] == [node.cache / "tmp"]
        hold.release()
        finish(prolog)
    got(node, 1, node.task(1), sif)


@AS_ROOT
def test_who_has_no_home_here_hears_of_it(node: Node, web: WebServer) -> None:
    node.uid, node.gid = 3_999_999_999, 77_777
    host = f"127.0.0.1:{web.port}"
    node.configure(f"[registry {host}]\ninsecure = yes\n")
    web.script("/v2/lab/x/manifests/1", [Status(401)] * 9)
    words = (
        "may not be read",
        "your uid has no account on this node, so no home with a login",
    )
    refused(node, 1, f"container:docker://{host}/lab/x:1", "Forbidden", *words)


def internet_sockets(pid: int) -> list[str]:
    """Return the sockets of a process that are not to processes of this machine alone."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    known = {f"socket:[{line.split()[9]}]" for line in lines}
    return [name for name in open_files(pid) if name in known]


def open_files(pid: int) -> list[str]:
    """Return the files that a process has open."""
    return [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]


def test_who_fetches_dies_with_its_parent_and_the_hook_still_ends_well(
    start: Start, node: Node, web: WebServer, url: str, sif: bytes
) -> None:
    node.configure("[stage]\nstall_timeout = 5m\n")  # so it does not end by itself meanwhile
    with web.hold("/x.sif", after_bytes=300_000):
        prolog = start(node, 1, f"container:{url}")
        # It has written something, has told its parent, and waits for the network alone.
        wait_until(
            lambda: any(path.stat().st_size for path in node.cache.glob("tmp/*")),
            what="the first bytes",
        )
        *_, parent, child = descendants(prolog.pid)
        wait_until(lambda: status_of(child)["State"][0] == "S", what="a wait for more")
        os.kill(parent, signal.SIGKILL)
        wait_until(lambda: gone(child), what="the end of the process that fetches")
        prolog.communicate(timeout=TIMEOUT_S)
        assert prolog.returncode == 0
    assert "interrupted" in node.task(1).printed
    staged(node, 2, f"container:{url}", sif, how="fetched")
