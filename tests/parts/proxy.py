"""A real web proxy on loopback, which reports the requests that it got."""

from __future__ import annotations

import re

from tests.parts.daemon import Server, free_ports, missing_commands

_REQUEST = re.compile(r"Request \(file descriptor \d+\): (\S+) (\S+) HTTP/")


class Proxy(Server):
    """Debian's tinyproxy. Attributes: url, as the variables for proxies have it."""

    name = "proxy"

    def __init__(self) -> None:
        """Choose the port; nothing runs yet."""
        [self.port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for it, or an empty string."""
        return missing_commands("tinyproxy", "setpriv")

    def command(self) -> list[str]:
        conf = self.directory / "tinyproxy.conf"
        conf.write_text(
            f"Port {self.port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nLogLevel Connect\n"
        )
        return ["tinyproxy", "-d", "-c", str(conf)]

    def requests(self) -> list[tuple[str, str]]:
        """Return method and address of all requests so far, CONNECT with HOST:PORT."""
        return _REQUEST.findall(self.log.read_text())
