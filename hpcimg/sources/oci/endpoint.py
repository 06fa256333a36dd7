"""One place to read a repository from: a registry, or a mirror of it.

The reading part of the OCI Distribution Specification 1.1.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Mapping
from urllib.parse import urlencode

from hpcimg import dockerhub
from hpcimg.errors import ConfigError, Damaged, NotAnImage
from hpcimg.fetch.contract import Blob
from hpcimg.fetch.settings import Place, Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http import certsd, mirrors
from hpcimg.http.certsd import Certificates
from hpcimg.http.download import Get, download_from
from hpcimg.http.retry import attempts
from hpcimg.http.session import JSON_MAX, Session, read_small, request, unpacked
from hpcimg.http.urls import shown
from hpcimg.sources.oci import logins, manifests
from hpcimg.sources.oci.auth import RegistryAuthorization
from hpcimg.sources.oci.credentials import Login
from hpcimg.sources.oci.manifests import Manifest, is_digest

_ACCEPT = ", ".join(manifests.MANIFEST_TYPES)


class Endpoint:
    """A repository at one place. Attributes: host, as it was configured; is_mirror.

    `mirror_of` is the host of the registry that it stands for, "" for none. Unless it is the `last`
    one, it is asked only once, with short timeouts, and its blobs are verified while there is
    another place to get them from.
    """

    def __init__(
        self,
        session: Session,
        place: Place,
        sink: Sink,
        settings: Settings,
        *,
        uri: str,
        mirror_of: str = "",
        last: bool = True,
    ) -> None:
        """Prepare it; `uri` is what the user wrote, for errors."""
        self.host, _, repository = place.name.partition("/")
        self.is_mirror = bool(mirror_of)
        self._uri = uri
        base = settings._replace(insecure=place.insecure).address(dockerhub.address(self.host))
        certificates = _certificates(place, self.host, as_user=settings.as_user)
        if any(certificates):
            session = session.with_certificates(certificates, base)
        self._session = session
        self._sink = sink
        self._last = last
        self._settings = self._blob_settings = settings._replace(insecure=place.insecure)
        if not last:
            self._blob_settings = mirrors.for_files(self._blob_settings)
            self._settings = mirrors.for_answers(self._settings)
        self._base = f"{base}/v2/{repository}"
        # As containerd does: one mirror may serve several registries.
        self._query = f"?{urlencode({'ns': mirror_of})}" if mirror_of else ""
        self.authorization = RegistryAuthorization(
            session,
            base,
            repository,
            self._settings,
            uri=uri,
            login=functools.partial(_login, self.host, repository, place, as_user=settings.as_user),
        )

    def log_in(self) -> None:
        """Log in if there is a login, before the first request. Raises Forbidden."""
        for attempt in attempts(self._sink, self._settings):
            with attempt:
                self.authorization.log_in()

    def blob(self, blob: Blob, sink: Sink) -> bool:
        """Download a blob into a sink, in as many attempts as it takes.

        Raises Damaged if a mirror has different content.
        """
        url = f"{self._base}/blobs/sha256:{blob.sha256}{self._query}"
        unchanged = download_from(
            self._session,
            Get(url, authorization=self.authorization, check=self.authorization.check),
            sink,
            self._blob_settings,
            size_bytes=None if self._last else blob.size_bytes,
            stored=blob,
        )
        if not self._last and (found := sink.sha256()) != blob.sha256:
            raise Damaged(f"{shown(url)} is not what was announced", why=f"its sha256 is {found}")
        return unchanged

    def manifest(self, version: str, known: str = "") -> Manifest | None:
        """Return a manifest, verified; None if it is still the one that `known` names."""
        url = f"{self._base}/manifests/{version}{self._query}"
        condition = {"If-None-Match": f'"{known}"'} if known else {}
        for attempt in attempts(self._sink, self._settings):
            with attempt:
                body = self._read(url, {"Accept": _ACCEPT, **condition}, wanted=version)
        if body is None:
            return None
        digest = _digest(body)
        if digest == known:
            return None
        if is_digest(version):
            self._check(body, version)
        return manifests.parse(body, digest, self._uri)

    def read_blob(self, digest: str) -> bytes:
        """Return a small blob, verified. Raises NotAnImage, Damaged."""
        url = f"{self._base}/blobs/{digest}{self._query}"
        for attempt in attempts(self._sink, self._settings):
            with attempt:
                body = self._read(url, {}, wanted=digest) or b""
                self._check(body, digest)
        return body

    def _check(self, body: bytes, digest: str) -> None:
        if _digest(body) != digest:
            raise Damaged(
                f"the registry sent something other than {self._uri}",
                why=f"the digest of its answer is {_digest(body)}",
            )

    def _read(self, url: str, headers: Mapping[str, str], *, wanted: str) -> bytes | None:
        with request(
            self._session, url, self._settings, headers=headers, authorization=self.authorization
        ) as response:
            if response.status == 304 and "If-None-Match" in headers:
                return None
            self.authorization.check(response, self._uri)
            body = read_small(response, decode=False)
            if "Content-Encoding" in response.headers and _digest(body) != wanted:
                body = unpacked(body)
        if len(body) > JSON_MAX:
            raise NotAnImage(f"the manifest or config of {self._uri} is too large")
        return body


def _digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _certificates(place: Place, host: str, *, as_user: bool) -> Certificates:
    given = Certificates(place.authorities, place.client)
    if given.client or not as_user or place.insecure:
        return given
    with contextlib.suppress(ConfigError):  # skip what a user cannot read
        return given._replace(client=certsd.read(host).client)
    return given


def _login(host: str, repository: str, place: Place, *, as_user: bool) -> Login | None:
    if place.credentials:
        return logins.in_text(place.credentials, host, repository)
    return logins.of_user(host, repository) if as_user else None
