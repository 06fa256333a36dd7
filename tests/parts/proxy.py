"""A real web proxy on loopback, that says what it was asked for."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Self

from tests.parts.daemon import Daemon, free_ports, missing_commands

_REQUEST = re.compile(r"Request \(file descriptor \d+\): (\S+) (\S+) HTTP/")
_TIMEOUT_S = 60


class Proxy:
    """Debian's tinyproxy on a port of its own. A context manager.

    Attributes: url, as the variables for proxies have it.
    """

    def __init__(self) -> None:
        """Choose the port; nothing runs yet."""
        self._port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self._port}"

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for it, or an empty string."""
        return missing_commands("tinyproxy", "setpriv")

    def __enter__(self) -> Self:
        """Start, and wait until it answers."""
        self._directory = Path(tempfile.mkdtemp(prefix="proxy-"))
        conf = self._directory / "tinyproxy.conf"
        conf.write_text(
            f"Port {self._port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nLogLevel Connect\n"
        )
        self._log = self._directory / "log"
        self._daemon = Daemon(["tinyproxy", "-d", "-c", str(conf)], output=self._log)

        try:
            self._daemon.start()
            self._daemon.wait_for(self._port, timeout_s=_TIMEOUT_S, what="the proxy")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._daemon.stop()
        shutil.rmtree(self._directory)

    def requests(self) -> list[tuple[str, str]]:
        """Return method and address of all requests so far, CONNECT with HOST:PORT."""
        return _REQUEST.findall(self._log.read_text())
