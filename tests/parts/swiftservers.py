"""A real Swift on loopback: a proxy with tempauth and temp URLs, and one disk behind it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from requests import Response

from tests.parts.daemon import (
    PATH,
    Daemon,
    PartError,
    free_ports,
    listens,
    missing_commands,
    wait_until,
)
from tests.parts.sessions import patient_session

USER, KEY = "test:tester", "testing"
# A user of the same account, who can read what a container's ACL grants.
GUEST, GUEST_KEY = "test:guest", "guesting"
_KINDS = ("account", "container", "object")
_SERVERS = tuple(f"swift-{kind}-server" for kind in (*_KINDS, "proxy"))
_TIMEOUT_S = 60

_SWIFT_CONF = """[swift-hash]
swift_hash_path_prefix = test
swift_hash_path_suffix = test
[storage-policy:0]
name = Policy-0
default = yes
"""


class SwiftServers:
    """Debian's Swift, on ports and in a directory of its own. A context manager.

    Attributes: auth_url (of tempauth) and storage_url, whose account is that of USER.
    """

    def __init__(self) -> None:
        """Choose the ports; nothing runs yet."""
        self._port, self._memcached, *ports = free_ports(2 + len(_KINDS))
        self._ports = dict(zip(_KINDS, ports, strict=True))
        self._url = f"http://127.0.0.1:{self._port}"
        self.auth_url = f"{self._url}/auth/v1.0"
        self.storage_url = f"{self._url}/v1/AUTH_test"
        self._session = patient_session()

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for a Swift, or an empty string."""
        missing = missing_commands(*_SERVERS, "swift-ring-builder", "memcached", "setpriv")
        return missing or _missing_attributes()

    def __enter__(self) -> Self:
        """Start with nothing stored."""
        with ExitStack() as stack:
            self._directory = Path(tempfile.mkdtemp(prefix="swift-"))
            stack.callback(shutil.rmtree, self._directory)
            stack.callback(self._session.close)
            account = pwd.getpwuid(os.getuid()).pw_name
            self._write_configuration(account)
            self._make_rings()
            memcached = ["memcached", "-l", "127.0.0.1", "-p", str(self._memcached), "-u", account]
            daemons = [Daemon(memcached, output=self._directory / "memcached.log")]
            for server in _SERVERS:
                argv = [server, str(self._directory / f"{server}.conf")]
                daemons.append(Daemon(argv, output=self._directory / f"{server}.log"))
            for daemon in daemons:
                stack.callback(daemon.stop)
                daemon.start()
            ports = [self._memcached, self._port, *self._ports.values()]

            def answers() -> bool:
                for daemon in daemons:
                    daemon.expect_running()
                return all(listens(port) for port in ports)

            wait_until(answers, timeout_s=_TIMEOUT_S, what="Swift")
            self._log_in()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and remove what was stored."""
        self._stack.close()

    def make_container(self, name: str, *, read: str = "") -> None:
        """Create a container, or change who can read it: an ACL, `.r:*` for everybody."""
        self._done("PUT", name, headers={"X-Container-Read": read})

    def put(
        self,
        container: str,
        name: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        query: str = "",
    ) -> None:
        """Store an object; its name is percent-encoded already."""
        self._done("PUT", f"{container}/{name}{query}", data=data, headers=headers)

    def put_static(self, container: str, name: str, parts: list[bytes]) -> None:
        """Store a static large object."""
        manifest = []
        for number, part in enumerate(parts):
            segment = f"{name}-segments/{number}"
            self.put(container, segment, part)
            manifest.append({"path": f"/{container}/{segment}"})
        self.put(container, name, json.dumps(manifest).encode(), query="?multipart-manifest=put")

    def put_dynamic(self, container: str, name: str, parts: list[bytes]) -> None:
        """Store a dynamic large object."""
        for number, part in enumerate(parts):
            self.put(container, f"{name}-segments/{number}", part)
        self.put(container, name, headers={"X-Object-Manifest": f"{container}/{name}-segments/"})

    def use_temp_url_key(self, key: str) -> None:
        """Let temp URLs be signed with this key."""
        self._done("POST", "", headers={"X-Account-Meta-Temp-URL-Key": key})

    def _log_in(self) -> None:
        headers = {"X-Auth-User": USER, "X-Auth-Key": KEY}
        response = self._session.get(self.auth_url, headers=headers, timeout=_TIMEOUT_S)
        self._session.headers["X-Auth-Token"] = response.headers["X-Auth-Token"]

    def _done(
        self, method: str, path: str, *, data: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response:
        url = f"{self.storage_url}/{path}".rstrip("/")
        response = self._session.request(
            method, url, data=data, headers=headers, timeout=_TIMEOUT_S
        )
        if response.status_code >= 300:
            raise PartError(f"{method} {url}: {response.status_code} {response.text}")
        return response

    def _write_configuration(self, account: str) -> None:
        disk = self._directory / "disks" / "d1"
        disk.mkdir(parents=True)
        # Older releases take the one in /etc/swift, which Debian's packages bring.
        (self._directory / "swift.conf").write_text(_SWIFT_CONF)
        common = f"""[DEFAULT]
bind_ip = 127.0.0.1
workers = 0
user = {account}
swift_dir = {self._directory}
devices = {disk.parent}
mount_check = false
fallocate_reserve = 0
disable_fallocate = true
"""
        for kind, port in self._ports.items():
            self._configure(
                f"swift-{kind}-server",
                f"{common}bind_port = {port}\n[pipeline:main]\npipeline = {kind}-server\n"
                f"[app:{kind}-server]\nuse = egg:swift#{kind}\n",
            )
        memcached = f"memcache_servers = 127.0.0.1:{self._memcached}"
        self._configure(
            "swift-proxy-server",
            f"""{common}bind_port = {self._port}
[pipeline:main]
pipeline = catch_errors cache tempurl tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
{memcached}
[filter:tempurl]
use = egg:swift#tempurl
[filter:tempauth]
use = egg:swift#tempauth
user_{USER.replace(":", "_")} = {KEY} .admin
user_{GUEST.replace(":", "_")} = {GUEST_KEY}
[filter:slo]
use = egg:swift#slo
min_segment_size = 1
[filter:dlo]
use = egg:swift#dlo
""",
        )

    def _configure(self, server: str, text: str) -> None:
        (self._directory / f"{server}.conf").write_text(text)

    def _make_rings(self) -> None:
        """Build the three rings in parallel, since that takes a while."""
        steps = (
            'swift-ring-builder "$1" create 2 1 1 && swift-ring-builder "$1" add '
            'r1z1-127.0.0.1:"$2"/d1 1 && swift-ring-builder "$1" rebalance'
        )
        made = [
            subprocess.Popen(
                ["sh", "-c", steps, "sh", f"{kind}.builder", str(port)],
                cwd=self._directory,
                env={"PATH": PATH},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for kind, port in self._ports.items()
        ]
        for process in made:
            output, _ = process.communicate(timeout=_TIMEOUT_S)
            if process.returncode:
                raise PartError(f"swift-ring-builder: {output.decode(errors='replace')}")


def _missing_attributes() -> str:
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.setxattr(file.name, "user.swift.metadata", b"1" * 1000)
        except OSError:
            return f"no extended attributes in {tempfile.gettempdir()}, where Swift keeps metadata"
    return ""
