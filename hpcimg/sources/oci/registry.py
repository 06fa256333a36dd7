"""One repository of an OCI registry, read from its mirrors or from the registry itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hpcimg.errors import HpcimgError, NodeError, TransientError
from hpcimg.fetch.contract import MIRROR, ORIGIN, Blob, text_of
from hpcimg.fetch.settings import Place, Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.session import Session
from hpcimg.imagename import Name
from hpcimg.sources.oci.endpoint import Endpoint
from hpcimg.sources.oci.manifests import Manifest

_Result = TypeVar("_Result")


class Registry:
    """One repository of one registry, read from its mirrors if the site has some.

    Mirrors are tried in order, the registry itself last. The one that had the manifest is asked for
    the blobs. Several threads may download at once, each into a sink of its own.
    """

    def __init__(
        self,
        session: Session,
        name: Name,
        sink: Sink,
        settings: Settings,
        *,
        uri: str,
    ) -> None:
        """Prepare for the registry of `name`; `uri` is what the user wrote, for errors."""
        self._uri = uri
        self._name = name
        self._sink = sink
        own = Place(f"{name.host}/{name.repository}", settings.insecure, settings.credentials)
        # Passed between processes, they arrive as plain lists.
        places = [Place(*place) for place in settings.places] or [own]
        self._endpoints = [
            Endpoint(
                session,
                place,
                sink,
                settings,
                uri=uri,
                mirror_of=name.host if place.mirror else "",
                last=place is places[-1],
            )
            for place in places
        ]
        self._at = 0  # which one to ask first

    def use_token(self, token: str) -> None:
        """Use a token for the registry itself that was obtained elsewhere."""
        self._endpoints[-1].authorization.use_token(token)

    @property
    def via(self) -> str:
        """Who is asked for blobs now, as in an Offer."""
        return MIRROR if self._endpoints[self._at].is_mirror else ORIGIN

    def has_login(self) -> bool:
        """Tell whether there is a login for the registry or one of its mirrors."""
        return any(endpoint.authorization.has_login() for endpoint in self._endpoints)

    def log_in(self) -> None:
        """Log in at the registry itself before the first request."""
        self._endpoints[-1].log_in()

    def manifest(self, known: str = "") -> Manifest | None:
        """Return the manifest, verified; None if it is still the one that `known` names."""
        return self._manifest(self._name.version, known)

    def read_blob(self, digest: str) -> str:
        """Return the text of a small blob, verified. Raises NotAnImage, Damaged."""
        _, body = self._ask(lambda endpoint: endpoint.read_blob(digest), self._sink)
        return text_of(body)

    def download(self, blob: Blob, sink: Sink) -> bool:
        """Download a blob into a sink, in as many attempts as it takes."""
        return self._ask(lambda endpoint: endpoint.blob(blob, sink), sink)[1]

    def read_manifest(self, digest: str) -> Manifest:
        """Return the manifest with this digest, verified."""
        found = self._manifest(digest)
        assert found  # without a condition the answer is never "unchanged"
        return found

    def _manifest(self, version: str, known: str = "") -> Manifest | None:
        self._at, found = self._ask(lambda endpoint: endpoint.manifest(version, known), self._sink)
        return found

    def _ask(self, what: Callable[[Endpoint], _Result], sink: Sink) -> tuple[int, _Result]:
        """Ask one after the other; return the number of the one that answered, and its answer."""
        login = ""
        for number in range(self._at, len(self._endpoints) - 1):
            mirror = self._endpoints[number]
            try:
                return number, what(mirror)
            except NodeError:
                raise
            except HpcimgError as error:
                sink.retry(f"mirror {mirror.host}: {error.brief}", 0.0)
                login = login or error.login
                if isinstance(error, TransientError):
                    self._at = max(self._at, number + 1)  # skip it for the next blob
        try:
            return len(self._endpoints) - 1, what(self._endpoints[-1])
        except HpcimgError as error:
            error.login = error.login or login
            raise
