"""An OCI registry, as far as reading goes (OCI Distribution Specification 1.1)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

import requests

from hpcimg.errors import (
    BadReference,
    Damaged,
    Forbidden,
    NotAnImage,
    Unreachable,
)
from hpcimg.fetching import Settings
from hpcimg.retry import attempts
from hpcimg.sink import Sink
from hpcimg.sources.manifests import Manifest, digest_for_this_machine, is_digest
from hpcimg.transfer import JSON_MAX, check_status, download, parse_json, read_json, request

_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(f"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"')


class Name(NamedTuple):
    """Where an image is: a registry, a repository in it, a tag, and a digest where one is given."""

    host: str
    repository: str
    tag: str
    digest: str

    @property
    def version(self) -> str:
        """What to ask for: the digest goes before the tag."""
        return self.digest or self.tag


def parse_name(text: str) -> Name:
    """Read `host[:port]/repository[:tag][@sha256:...]`. Raises BadReference."""
    host, _, rest = text.partition("/")
    rest, at, digest = rest.partition("@")
    repository, _, tag = rest.partition(":")
    if not _REPOSITORY.fullmatch(repository):
        raise BadReference(
            f"{text!r} names no repository", why="write HOST/REPOSITORY:TAG, in lower case"
        )
    if tag and not _TAG.fullmatch(tag):
        raise BadReference(f"{tag!r} in {text!r} is not a tag")
    if at and not is_digest(digest):
        raise BadReference(
            f"{digest!r} in {text!r} is not a digest", why="write @sha256: and 64 digits"
        )
    return Name(host, repository, tag or "latest", digest)


class Registry:
    """One repository of one registry, spoken to with the token that it wants."""

    def __init__(
        self, session: requests.Session, name: Name, sink: Sink, settings: Settings, *, uri: str
    ) -> None:
        """Speak to the registry of `name`; `uri` is what the user wrote, for errors."""
        self._uri = uri
        self._session = session
        self._name = name
        self._sink = sink
        self._settings = settings
        self._base = settings.address(name.host)
        self._token = ""

    @property
    def headers(self) -> dict[str, str]:
        """What every request to the registry carries; requests drops it for another host."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def download(self, digest: str, sink: Sink) -> bool:
        """Bring a blob into a sink, with as many attempts as it takes."""
        url = f"{self._base}/v2/{self._name.repository}/blobs/{digest}"
        return download(self._session, url, sink, self._settings, headers=self.headers)

    def read_blob(self, digest: str) -> str:
        """Return the text of a small blob, its digest checked. Raises NotAnImage, Damaged."""
        url = f"{self._base}/v2/{self._name.repository}/blobs/{digest}"
        for attempt in attempts(self._sink, self._settings):
            with attempt:
                body = self._read(url, {}) or b""
                self._check(body, digest)
        return body.decode(errors="replace")

    def use_token(self, token: str) -> None:
        """Use a token that was had elsewhere."""
        self._token = token if token.isprintable() else ""

    def manifest(self, known: str = "") -> Manifest | None:
        """Return the manifest, its digest checked; None where it still is the one `known` names."""
        return self._manifest(self._name.version, known)

    def for_this_machine(self, manifest: Manifest) -> Manifest:
        """Follow an index to the manifest for this machine's processor.

        What is no index is returned as it is. Raises WrongArchitecture.
        """
        digest = digest_for_this_machine(manifest, self._uri)
        if digest is None:
            return manifest
        chosen = self._manifest(digest)
        assert chosen  # without a condition there is no "unchanged"
        return chosen

    def _manifest(self, version: str, known: str = "") -> Manifest | None:
        url = f"{self._base}/v2/{self._name.repository}/manifests/{version}"
        condition = {"If-None-Match": f'"{known}"'} if known else {}
        for attempt in attempts(self._sink, self._settings):
            with attempt:
                body = self._read(url, {"Accept": _ACCEPT, **condition})
        if body is None:
            return None
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if digest == known:
            return None
        if is_digest(version):
            self._check(body, version)
        return Manifest(digest, parse_json(body, url))

    def _check(self, body: bytes, digest: str) -> None:
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if found != digest:
            raise Damaged(f"{self._uri} is not what the registry sent", why=f"that is {found}")

    def _read(self, url: str, headers: Mapping[str, str]) -> bytes | None:
        for _ in range(2):
            with request(
                self._session, url, self._settings, headers={**headers, **self.headers}
            ) as response:
                if response.status_code == 304 and "If-None-Match" in headers:
                    return None
                if response.status_code == 401 and not self._token:
                    self._token = self._authenticate(response)
                    continue
                check_status(response, self._uri)
                body = response.raw.read(JSON_MAX + 1, decode_content=False)
                if len(body) > JSON_MAX:
                    raise NotAnImage(f"the manifest of {self._uri} is too large")
                return bytes(body)
        raise Forbidden(f"{self._uri} may not be read", why="the registry refuses its own token")

    def _authenticate(self, response: requests.Response) -> str:
        """Get the token that a 401 asks for (Distribution's token authentication)."""
        challenge = response.headers.get("WWW-Authenticate", "")
        parameters = dict(_PARAMETER.findall(challenge))
        realm = parameters.get("realm", "")
        if not challenge.lower().startswith("bearer ") or not realm.startswith(("https:", "http:")):
            check_status(response, self._uri)
        query = {"scope": f"repository:{self._name.repository}:pull"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        with request(self._session, url, self._settings) as answer:
            fields = read_json(answer, realm)
        token = fields.get("token") or fields.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise Unreachable(f"{realm} gave no token")
        return token
