"""A real OCI registry on loopback, with an access log in which tests count requests."""

from __future__ import annotations

import hashlib
import io
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

from requests import Response

from tests.parts.daemon import (
    PartError,
    Server,
    free_ports,
    missing_commands,
    wait_until,
)
from tests.parts.sessions import patient_session
from tests.parts.tokenserver import ISSUER, SERVICE, TokenServer
from tests.parts.webserver import make_certificate

SIF_LAYER = "application/vnd.sylabs.sif.layer.v1.sif"
SIF_CONFIG = "application/vnd.sylabs.sif.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
# The user of a registry with `basic`, and the password as htpasswd -B writes it.
USER, PASSWORD = "jo", "s3cret"
_HTPASSWD = "jo:$2y$04$ny0W0KlrvqqFbMm3Y6Nv9OTEfW4vZf6q3WPdt9X/8CTJvP56gI0iS"

_REPOSITORY = re.compile(r"/v2/(.+)/(?:blobs|manifests)/")
_LOGGED = re.compile(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d{3}) (\d+) ')
# Our own request: once it is in the log, so is everything before it.
_MARK = "/v2/?mark="
_TIMEOUT_S = 60


class Request(NamedTuple):
    """One line of the access log."""

    method: str
    path: str
    status: int
    sent_bytes: int


class Registry(Server):
    """Debian's docker-registry, which has no images at first.

    Attributes: host ("127.0.0.1:PORT", as in docker://HOST/...), url, port; with TLS `certificate`,
    the PEM file that clients have to trust. stop and start simulate an outage: the port and what
    was pushed stay.
    """

    name = "registry"

    def __init__(
        self,
        *,
        basic: bool = False,
        tokens: TokenServer | None = None,
        mirror_of: str = "",
        tls: bool = False,
        clients: Path | None = None,
    ) -> None:
        """Choose the port; nothing runs yet.

        basic: only USER with PASSWORD has access. tokens: only holders of a token of this server
        have. mirror_of: it is a pull-through cache of the registry at this URL. clients: with TLS,
        only clients with this certificate have access; its key.pem is beside it.
        """
        self._basic = basic
        self._tokens = tokens
        self._mirror_of = mirror_of
        [self.port] = free_ports(1)
        self.host = f"127.0.0.1:{self.port}"
        self._tls = tls
        self._clients = clients
        self.url = f"http{'s' if tls else ''}://{self.host}"
        self.certificate = Path()
        self._marks = 0
        self._session = patient_session()
        if basic:
            self._session.auth = (USER, PASSWORD)

    @staticmethod
    def missing() -> str:
        """Return a sentence that says what this host lacks for a registry, or an empty string."""
        return missing_commands("docker-registry", "setpriv")

    def command(self) -> list[str]:
        config = self.directory / "config.yml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        return ["docker-registry", "serve", str(config)]

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._session.close()

    def requests(self) -> list[Request]:
        """Return all requests answered so far, in the order of their ends."""
        if self.is_up:
            self._settle()
        found = _LOGGED.findall(self.log.read_text(errors="replace"))
        lines = [
            Request(method, path, int(status), int(sent)) for method, path, status, sent in found
        ]
        return [line for line in lines if not line.path.startswith(_MARK)]

    def blob_gets(self, digest: str = "") -> list[Request]:
        """Return the requests that were answered with (part of) a blob, of one digest or of any."""
        wanted = f"/blobs/{digest}"
        return [
            line
            for line in self.requests()
            if line.method == "GET" and wanted in line.path and line.status in {200, 206}
        ]

    def push_sif(self, path: Path, repository: str, tag: str) -> str:
        """Push a file as an artifact of one SIF layer, as `apptainer push` does to oras://.

        Return the manifest's digest, "sha256:...".
        """
        empty = b"{}"
        config = {"mediaType": SIF_CONFIG, "size": len(empty)}
        config["digest"] = self.push_blob(repository, io.BytesIO(empty))
        layer = {"mediaType": SIF_LAYER, "size": path.stat().st_size}
        with path.open("rb") as file:
            layer["digest"] = self.push_blob(repository, file)
        layer["annotations"] = {"org.opencontainers.image.title": path.name}
        return self.push_manifest(
            repository,
            tag,
            {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]},
        )

    def push_blob(self, repository: str, content: io.BufferedIOBase) -> str:
        """Upload what is left of a seekable file in one request, and return its digest."""
        digest = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
        content.seek(0)
        begun = self._ask("POST", f"/v2/{repository}/blobs/uploads/")
        place = urljoin(self.url, begun.headers["Location"])
        separator = "&" if "?" in place else "?"
        self._ask("PUT", f"{place}{separator}digest={digest}", data=content)
        return digest

    def push_manifest(self, repository: str, tag: str, manifest: Mapping[str, object]) -> str:
        """Store a manifest, whose blobs are there already, under a tag; return its digest."""
        answer = self._ask(
            "PUT",
            f"/v2/{repository}/manifests/{tag}",
            data=json.dumps(manifest).encode(),
            headers={"Content-Type": str(manifest["mediaType"])},
        )
        return str(answer.headers["Docker-Content-Digest"])

    def _settle(self) -> None:
        # The registry writes a line after the client has had its answer. Requests that ended
        # before this one began are in the log when this one is.
        self._marks += 1
        mark = f"{_MARK}{self._marks}"
        self._ask("GET", mark)
        wait_until(
            lambda: f"{mark} " in self.log.read_text(errors="replace"),
            timeout_s=_TIMEOUT_S,
            what="the registry's log",
        )

    def _config(self) -> dict[str, object]:
        # The secret signs the state of uploads.
        http: dict[str, object] = {"addr": self.host, "secret": secrets.token_hex()}
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "storage")},
                "delete": {"enabled": True},
            },
            "http": http,
        }
        if self._basic:
            (self.directory / "htpasswd").write_text(f"{_HTPASSWD}\n")
            path = str(self.directory / "htpasswd")
            config["auth"] = {"htpasswd": {"realm": "test", "path": path}}
        if self._tokens:
            config["auth"] = {
                "token": {
                    "realm": self._tokens.realm,
                    "service": SERVICE,
                    "issuer": ISSUER,
                    "rootcertbundle": str(self._tokens.certificate),
                }
            }
        if self._tls:
            self.certificate, key = make_certificate(self.directory)
            self._session.verify = str(self.certificate)
            http["tls"] = {"certificate": str(self.certificate), "key": str(key)}
            if self._clients:
                self._session.cert = (str(self._clients), str(self._clients.with_name("key.pem")))
                http["tls"]["clientcas"] = [str(self._clients)]
        if self._mirror_of:
            config["proxy"] = {"remoteurl": self._mirror_of}
        return config

    def _ask(
        self,
        method: str,
        where: str,
        *,
        data: bytes | io.BufferedIOBase | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        url = urljoin(self.url, where)
        headers = dict(headers or {})
        if self._tokens:
            repository = _REPOSITORY.search(url)
            token = self._tokens.token(repository[1] if repository else "", "pull", "push")
            headers["Authorization"] = f"Bearer {token}"
        answer = self._session.request(method, url, data=data, headers=headers, timeout=_TIMEOUT_S)
        if not answer.ok:
            raise PartError(f"{method} {url}: {answer.status_code} {answer.text}")
        return answer
