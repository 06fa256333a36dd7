"""An OCI registry, as far as reading goes (OCI Distribution Specification 1.1)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import requests

from hpcimg.architecture import go_name
from hpcimg.errors import (
    BadReference,
    Damaged,
    Forbidden,
    NotAnImage,
    Unreachable,
    WrongArchitecture,
)
from hpcimg.fetching import Settings
from hpcimg.retry import attempts
from hpcimg.sink import Sink
from hpcimg.transfer import JSON_MAX, check_status, download, parse_json, read_json, request

_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
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


class Manifest(NamedTuple):
    """A manifest with the digest of its bytes."""

    digest: str
    content: dict[str, Any]


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
    if at and not _DIGEST.fullmatch(digest):
        raise BadReference(
            f"{digest!r} in {text!r} is not a digest", why="write @sha256: and 64 digits"
        )
    return Name(host, repository, tag or "latest", digest)


def is_digest(value: object) -> bool:
    """Tell whether this is a sha256 digest as manifests spell it."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


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
        entries = manifest.content.get("manifests")
        if not isinstance(entries, list):
            return manifest
        found: dict[str, str] = {}
        for entry in entries:
            platform = entry.get("platform") if isinstance(entry, dict) else None
            if isinstance(platform, dict) and is_digest(entry.get("digest")):
                found.setdefault(str(platform.get("architecture")), entry["digest"])
        if go_name() not in found:
            raise WrongArchitecture(
                f"{self._uri} has no image for this machine",
                why=f"it is for {', '.join(sorted(found)) or 'none'}, this machine is {go_name()}",
            )
        chosen = self._manifest(found[go_name()])
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
        if is_digest(version) and digest != version:
            raise Damaged(f"{self._uri} is not what the registry sent", why=f"that is {digest}")
        return Manifest(digest, parse_json(body, url))

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
