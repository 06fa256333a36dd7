"""A lab: nodes that are network namespaces on one bridge, their links shaped, and an origin.

Each node has an address, a name that all nodes know, a link of its own rate in both
directions, and a cache, a state directory and a configuration of its own; it runs the real
hooks. The origin is a web server behind a link of its own. What leaves a link is counted by
the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from tests.parts import images
from tests.parts.daemon import PATH, PartError, missing_commands
from tests.parts.munge import Munge
from tests.parts.node import PROLOG, Node
from tests.parts.webserver import WebServer

_MTU = 9000  # fewer packets, and headers of one per cent
_ORIGIN_HOST = 250  # the last part of its address
_HOST = 251  # of the host that the lab is on
_CLONE_NEWNET = 0x40000000


class Run(NamedTuple):
    """The result of one job: how long each node's Prolog held it, in seconds, by node."""

    held_s: dict[str, float]

    @property
    def median_s(self) -> float:
        return statistics.median(self.held_s.values())

    @property
    def p99_s(self) -> float:
        ordered = sorted(self.held_s.values())
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


class LabNode(Node):
    """One node of a lab."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.name = f"n{number}"
        self.address = lab.address(number)
        self.namespace = f"{lab.name}-{self.name}"
        self._lab = lab
        self.job_nodes: Sequence[str] = [self.name]
        self.variables: dict[str, str] = {}
        directory = lab.directory / self.name
        directory.mkdir()
        directory.chmod(0o755)
        super().__init__(directory, lab.settings)

    def environment(self, job: int | str, comment: str | None = None) -> dict[str, str]:
        """Return the environment that this node's slurmd gives a hook."""
        return {
            **super().environment(job, comment),
            "SLURMD_NODENAME": self.name,
            "SLURM_NODELIST": ",".join(self.job_nodes),
            **self.variables,
        }

    def start_prolog(self, job: int | str, comment: str | None) -> subprocess.Popen[str]:
        """Start Prolog in the node's network namespace, where the lab's names resolve."""
        return subprocess.Popen(
            [*self._lab.enter(self.namespace), str(PROLOG)],
            env=self.environment(job, comment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def sent(self) -> int:
        """Return how many bytes have left the node's link."""
        return self._lab.sent(self.namespace)

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Cut the node off from the network for a while; connections stay open."""
        link = ("-n", self._lab.hub, "link", "set", self.name)
        self._lab.ip(*link, "nomaster")
        try:
            yield
        finally:
            self._lab.ip(*link, "master", "bridge0")


class Lab:
    """N nodes n1, n2, ..., and an origin. A context manager; nothing of it is left behind.

    Rates are in Mbit/s, 0 for links that are not shaped. `settings` are lines of every
    node's configuration, in which {address}, {directory}, {network} and {munge} are replaced.
    Attributes: nodes, web (the origin), munge, directory, network.
    """

    def __init__(
        self, nodes: int, *, node_rate: float = 0, origin_rate: float = 0, settings: str = ""
    ) -> None:
        if not 0 < nodes < _ORIGIN_HOST:
            raise ValueError(f"a lab has 1 to {_ORIGIN_HOST - 1} nodes")
        self._count = nodes
        self._node_rate = node_rate
        self._origin_rate = origin_rate
        self._settings = settings
        self.name = f"lab{os.getpid()}x{random.randrange(1000)}"
        self.hub = f"{self.name}-hub"
        self._origin = f"{self.name}-origin"
        self._subnet = f"10.{random.randrange(64, 192)}.{random.randrange(256)}"
        self.network = f"{self._subnet}.0/24"

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for a lab, or an empty string."""
        if os.geteuid() != 0:
            return "a lab needs root: it makes network namespaces"
        absent = missing_commands("ip", "tc", "nsenter", "unshare")
        return absent or Munge.missing() or images.missing() or _no_namespaces()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # Not a directory of pytest's: those are for one account alone.
            self.directory = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
            stack.callback(shutil.rmtree, self.directory)
            self.directory.chmod(0o755)
            self.munge = stack.enter_context(Munge(self.directory))
            self.settings = self._settings.format(
                directory=self.directory, network=self.network, munge=self.munge.socket
            )
            self._hosts = self.directory / "hosts"
            self._hosts.write_text("127.0.0.1 localhost\n")
            stack.callback(self._delete_namespaces)
            self._make_namespaces()
            with self.inside(self._origin):
                self.web = stack.enter_context(WebServer(address=self.address(_ORIGIN_HOST)))
            self.nodes = [LabNode(self, number) for number in range(1, self._count + 1)]
            # Processes before the network and the directory that they use.
            self._running: list[subprocess.Popen[str]] = []
            stack.callback(self._end_prologs)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def put(self, *, size_bytes: int) -> str:
        """Serve a new image of this size on the origin; return its address."""
        name = f"{os.urandom(4).hex()}.sif"
        path = images.make_sif(self.directory / name, {"a": os.urandom(16)}, size_bytes=size_bytes)
        return self.web.put(f"/{name}", path.read_bytes(), etag=f'"{name}"')

    def start(
        self, job: int, url: str, nodes: Sequence[LabNode] = (), *, late: Sequence[LabNode] = ()
    ) -> dict[str, subprocess.Popen[str]]:
        """Start the job's Prolog on the given nodes, by default on all, at once.

        The job has the nodes `late` too, whose Prolog is not started here.
        """
        nodes = nodes or self.nodes
        for node in nodes:
            node.job_nodes = [other.name for other in (*nodes, *late)]
        started = {node.name: node.start_prolog(job, f"container:{url}") for node in nodes}
        self._running += started.values()
        return started

    def run(
        self, job: int, url: str, nodes: Sequence[LabNode] = (), *, timeout_s: float = 60
    ) -> Run:
        """Run the job's Prolog on the nodes to its end; each must exit with 0."""
        began = time.monotonic()
        return self.wait(self.start(job, url, nodes), began=began, timeout_s=timeout_s)

    def wait(
        self, prologs: Mapping[str, subprocess.Popen[str]], *, began: float, timeout_s: float = 60
    ) -> Run:
        """Wait for the end of the Prologs, which must exit with 0 and print nothing."""
        held_s: dict[str, float] = {}
        wrong: list[str] = []

        def follow(name: str, prolog: subprocess.Popen[str]) -> None:
            try:
                output, _ = prolog.communicate(timeout=began + timeout_s - time.monotonic())
            except subprocess.TimeoutExpired:
                wrong.append(f"{name} took longer than {timeout_s:g} s")
                return
            held_s[name] = time.monotonic() - began
            if prolog.returncode or output:
                wrong.append(f"{name} ended with {prolog.returncode}: {output}")

        threads = [threading.Thread(target=follow, args=each) for each in prologs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise PartError("; ".join(wrong))
        return Run(held_s)

    @contextmanager
    def kept_apart(self, nodes: Sequence[LabNode]) -> Iterator[None]:
        """Let no packet pass between these nodes for a while; others reach them all."""
        for node in nodes:
            self._isolate(node, "on")
        try:
            yield
        finally:
            for node in nodes:
                self._isolate(node, "off")

    def _isolate(self, node: LabNode, value: str) -> None:
        port = ("-n", self.hub, "link", "set", node.name, "type", "bridge_slave")
        self.ip(*port, "isolated", value)

    def origin_sent(self) -> int:
        """Return how many bytes have left the origin's link."""
        return self.sent(self._origin)

    def swarm_processes(self) -> list[int]:
        """Return the processes that are in the namespaces of the nodes."""
        found = []
        for node in self.nodes:
            found += map(int, self.ip("netns", "pids", node.namespace).split())
        return found

    def address(self, number: int) -> str:
        """Return the address of a node by its number."""
        return f"{self._subnet}.{number}"

    def enter(self, namespace: str) -> list[str]:
        """Return the prefix of a command that runs in a namespace of the lab."""
        script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
        inside = ["nsenter", f"--net=/run/netns/{namespace}", "unshare", "-m"]
        return [*inside, "sh", "-c", script, "sh", str(self._hosts)]

    def sent(self, namespace: str) -> int:
        """Return how many bytes have left a namespace's link."""
        [link] = json.loads(self.ip("-n", namespace, "-s", "-j", "link", "show", "dev", "e0"))
        return int(link["stats64"]["tx"]["bytes"])

    def join_host(self) -> str:
        """Connect this host to the bridge while the lab exists; return its address."""
        name = f"{self.name[-8:]}h"  # a link's name has 15 characters
        self.ip("-n", self.hub, "link", "add", "host", "mtu", str(_MTU), "type", "veth",
                "peer", "name", name, "mtu", str(_MTU), "netns", str(os.getpid()))  # fmt: skip
        self.ip("-n", self.hub, "link", "set", "host", "master", "bridge0", "up")
        self.ip("link", "set", name, "up")
        self.ip("addr", "add", f"{self.address(_HOST)}/24", "dev", name)
        return self.address(_HOST)

    def ip(self, *arguments: str) -> str:
        """Run ip(8); return what it printed."""
        return _run("ip", *arguments)

    def _make_namespaces(self) -> None:
        self.ip("netns", "add", self.hub)
        self.ip("-n", self.hub, "link", "add", "bridge0", "type", "bridge")
        self.ip("-n", self.hub, "link", "set", "bridge0", "mtu", str(_MTU), "up")
        self._add("origin", _ORIGIN_HOST, self._origin_rate)
        for number in range(1, self._count + 1):
            self._add(f"n{number}", number, self._node_rate)

    def _add(self, name: str, number: int, rate: float) -> None:
        namespace = f"{self.name}-{name}"
        self.ip("netns", "add", namespace)
        self.ip("-n", self.hub, "link", "add", name, "mtu", str(_MTU), "type", "veth",
                "peer", "name", "e0", "mtu", str(_MTU), "netns", namespace)  # fmt: skip
        self.ip("-n", self.hub, "link", "set", name, "master", "bridge0", "up")
        self.ip("-n", namespace, "link", "set", "lo", "up")
        self.ip("-n", namespace, "link", "set", "e0", "up")
        self.ip("-n", namespace, "addr", "add", f"{self.address(number)}/24", "dev", "e0")
        if rate:  # out of the node, and into it
            shape = ("root", "tbf", "rate", f"{rate:g}mbit", "burst", "64k", "latency", "100ms")
            _run("tc", "-n", namespace, "qdisc", "add", "dev", "e0", *shape)
            _run("tc", "-n", self.hub, "qdisc", "add", "dev", name, *shape)
        with self._hosts.open("a") as hosts:
            hosts.write(f"{self.address(number)} {name}\n")

    def _delete_namespaces(self) -> None:
        """Delete all namespaces that exist, and with them the bridge and all links."""
        for name in self.ip("netns", "list").split():
            if name.startswith(f"{self.name}-"):
                with contextlib.suppress(PartError):
                    self.ip("netns", "del", name)

    def _end_prologs(self) -> None:
        for process in self._running:
            process.kill()  # what it started ends with it
            process.communicate()

    @contextmanager
    def inside(self, namespace: str) -> Iterator[None]:
        """Put sockets that this thread opens, and threads that it starts, into a namespace."""
        with open("/proc/thread-self/ns/net") as ours, open(f"/run/netns/{namespace}") as theirs:
            _set_namespace(theirs.fileno())
            try:
                yield
            finally:
                _set_namespace(ours.fileno())


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _no_namespaces() -> str:
    """Return why links cannot be created and shaped here, or an empty string."""
    name = f"lab{os.getpid()}-try"
    try:
        _run("ip", "netns", "add", name)
        try:
            _run("ip", "-n", name, "link", "add", "b0", "type", "bridge")
            _run("tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1mbit",
                 "burst", "64k", "latency", "100ms")  # fmt: skip
        finally:
            _run("ip", "netns", "del", name)
    except PartError as error:
        return f"no network namespaces with shaped links here: {error}"
    return ""


def _run(*argv: str) -> str:
    done = subprocess.run(argv, env={"PATH": PATH}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout
