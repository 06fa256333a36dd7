"""A site with hpcimg: a cluster with the three hooks, and servers with images."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.parts import images
from tests.parts.cluster import Cluster, hpcimg_hooks
from tests.parts.daemon import PATH
from tests.parts.images import READ_IMAGE, make_sif
from tests.parts.node import ROOT, Node
from tests.parts.registry import Registry
from tests.parts.users import Homes
from tests.parts.webserver import WebServer

EXAMPLE = ROOT / "etc" / "slurm.conf.example"


class Site:
    """A Slurm cluster, a registry and a web server, with hpcimg configured for them.

    A context manager. Attributes: cluster, registry, web, conf (the hpcimg.conf of all nodes),
    homes (of users), read_image (a script for jobs: IMAGE NAME) and directory, which has n1/cache,
    n1/state and n1/hpcimg.log for each node and may be entered by everybody.
    """

    def __init__(
        self,
        *,
        nodes: int = 3,
        settings: str = "",
        extra_conf: str = "",
        lua: Sequence[Path] = (),
        variables: Mapping[str, str] | None = None,
        users: Collection[str] = (),
    ) -> None:
        """Describe the site; nothing runs yet.

        settings: lines of hpcimg.conf, by section. extra_conf: lines of slurm.conf, after those
        of the example. lua: plugins; the grammar that they need is put beside them.
        variables: what the site sets in the environment of the hooks.
        users: accounts of this host to whom the nodes give homes of their own, see `homes`.
        """
        self._nodes = nodes
        self._settings = settings
        self._extra_conf = f"{example_settings()}\n{extra_conf}"
        self._lua = lua
        self._variables = dict(variables or {})
        self._users = {name: pwd.getpwnam(name).pw_uid for name in users}

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for a site, or an empty string."""
        return Cluster.missing() or Registry.missing() or images.missing()

    def __enter__(self) -> Self:
        """Start everything. If that fails, end what was started."""
        with ExitStack() as stack:
            # Not a directory of pytest's: those are for one account alone.
            self.directory = Path(tempfile.mkdtemp(prefix="site-", dir="/tmp"))
            stack.callback(shutil.rmtree, self.directory)
            self.directory.chmod(0o755)
            self.registry = stack.enter_context(Registry())
            self.web = stack.enter_context(WebServer())
            self.conf = self.directory / "hpcimg.conf"
            self.configure(self._settings)
            self.read_image = self._copy(READ_IMAGE)
            self.homes = Homes(self.directory, self._users)
            self.cluster = stack.enter_context(self._new_cluster())
            grammar = shutil.copy(ROOT / "etc" / "hpcimg.lua", self.cluster.directory)
            Path(grammar).chmod(0o644)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything and remove the directory."""
        self._stack.close()

    def configure(self, settings: str = "") -> None:
        """Write the configuration: what this host needs in hpcimg.conf, `settings` in conf.d."""
        self.conf.write_text(
            f"[cache]\npath = {self.directory}/%n/cache\nmin_free = 0\n"
            f"[state]\npath = {self.directory}/%n/state\n"
            f"[log]\nto = {self.directory}/%n/hpcimg.log\n"
            f"[stage]\nregistries_conf = {self.directory}/registries.conf\n"
            f"[registry {self.registry.host}]\ninsecure = yes\n"
        )
        own = self.directory / "conf.d" / "site.conf"
        own.parent.mkdir(exist_ok=True)
        own.write_text(settings)
        for path in (self.conf, own.parent, own):
            # The task prolog reads them as the job's user, whatever the umask of the test run.
            path.chmod(0o755 if path.is_dir() else 0o644)

    def node(self, name: str) -> SiteNode:
        """Return a node's cache, state, log and command line."""
        return SiteNode(self, name)

    def status(self, name: str) -> dict[str, Any]:
        """Return what `hpcimg status --json` says on a node."""
        return self.node(name).hpcimg_json("status")

    def image(self, name: str, *, size_bytes: int = 0) -> Path:
        """Make a SIF image, unlike all others, with a file "hello" that holds its name and \\n."""
        content = {"hello": f"{name}\n".encode(), "unique": os.urandom(16)}
        return make_sif(self.directory / f"{name}.sif", content, size_bytes=size_bytes)

    def put(self, name: str, *, size_bytes: int = 0) -> str:
        """Make an image and serve it on the web server; return its address."""
        data = self.image(name, size_bytes=size_bytes).read_bytes()
        return self.web.put(f"/{name}.sif", data, etag='"1"')

    def push(self, name: str, *, size_bytes: int = 0) -> str:
        """Make an image and push it to the registry; return its reference."""
        self.registry.push_sif(self.image(name, size_bytes=size_bytes), f"lab/{name}", "1.0")
        return f"oras://{self.registry.host}/lab/{name}:1.0"

    def _new_cluster(self) -> Cluster:
        variables = {**self._variables, "HPCIMG_CONF": str(self.conf)}
        for number in range(1, self._nodes + 1):
            directory = self.directory / f"n{number}"
            directory.mkdir()
            directory.chmod(0o755)
        return Cluster(
            nodes=self._nodes,
            hooks=hpcimg_hooks(self.directory, variables),
            lua=self._lua,
            etc=self.homes.etc if self._users else None,
            extra_conf=self._extra_conf,
        )

    def _copy(self, script: Path) -> Path:
        path = Path(shutil.copy(script, self.directory))
        path.chmod(0o755)
        return path


class SiteNode(Node):
    """One node of a site. What slurmd does on it can be done by hand as well."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self.name = name
        super().__init__(site.directory / name)
        self.conf = site.conf

    def configure(self, settings: str = "") -> None:
        """Do nothing: the nodes share the site's configuration."""

    def environment(self, job: int | str, comment: str | None = None) -> dict[str, str]:
        """Return the environment that this node's slurmd gives a hook."""
        return {**super().environment(job, comment), "SLURMD_NODENAME": self.name}

    def hpcimg(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on the node as root."""
        environment = {
            "PATH": PATH,
            "LC_ALL": "C.UTF-8",
            "HPCIMG_CONF": str(self.conf),
            "SLURMD_NODENAME": self.name,
            "SLURM_CONF": str(self._site.cluster.conf),
        }
        return self._run([str(ROOT / "bin" / "hpcimg"), *arguments], environment)

    def jobs(self) -> list[str]:
        """Return the jobs that have a directory on the node."""
        return sorted(path.name for path in self.state.glob("jobs/*"))


def example_settings() -> str:
    """Return the settings of etc/slurm.conf.example without the hooks, which are a site's own."""
    hook_lines = ("Prolog=", "TaskProlog=", "Epilog=")
    lines = EXAMPLE.read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith(hook_lines))
