"""The mirror of etc/nginx, run by a real nginx in front of the tests' own servers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

from tests.parts.daemon import PATH, Server, free_ports, missing_commands
from tests.parts.node import ROOT

CONF = ROOT / "etc/nginx/hpcimg-mirror.conf"

_MAIN = """\
daemon off;
pid {directory}/pid;
error_log stderr warn;
worker_processes 1;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log {directory}/access;
    include {directory}/mirror.conf;
}}
"""


class NginxMirror(Server):
    """nginx with the configuration that sites get. Attributes: host ("127.0.0.1:PORT") and url."""

    name = "nginx"

    def __init__(
        self,
        *,
        registries: Mapping[str, str] | None = None,
        servers: Mapping[str, str] | None = None,
    ) -> None:
        """Choose the ports; nothing runs yet.

        `registries` and `servers` replace its two tables; None keeps those that are shipped.
        """
        self._tables = {"hpcimg_registry": registries, "hpcimg_server": servers}
        self.port, self._inner = free_ports(2)
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for it, or an empty string."""
        return missing_commands("nginx")

    def command(self) -> list[str]:
        self.directory.chmod(0o755)
        (self.directory / "mirror.conf").write_text(self._conf())
        main = self.directory / "nginx.conf"
        user = "user www-data;" if self.directory.owner() == "root" else ""
        main.write_text(_MAIN.format(directory=self.directory, user=user))
        nginx = shutil.which("nginx", path=PATH) or "nginx"
        return [nginx, "-c", str(main), "-p", str(self.directory), "-e", "stderr"]

    def _conf(self) -> str:
        """Return the configuration with this host's port, places and tables in it."""
        text = CONF.read_text()
        for name, table in self._tables.items():
            if table is None:
                continue
            before, after = re.split(rf"(?<= \${name} {{\n)[^}}]*", text)
            rows = [f"    {key}  {value};\n" for key, value in table.items()]
            text = "".join([before, *rows, after])
        for before, after in {
            "listen 8080;": f"listen {self.host};",
            "listen 127.0.0.1:8081;": f"listen 127.0.0.1:{self._inner};",
            "server 127.0.0.1:8081;": f"server 127.0.0.1:{self._inner};",
            "/var/cache/nginx/hpcimg": f"{self.directory}/cache",
        }.items():
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        return text
