"""A site with all sources of images, and nodes configured for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.parts.objectstore import Identity, ObjectStore
from tests.parts.registry import Registry
from tests.parts.registryclient import auth_file
from tests.parts.site import Site
from tests.parts.slurmclient import USERS
from tests.parts.swiftservers import SwiftServers
from tests.parts.webserver import WebServer


@dataclass
class World:
    """A site of two nodes and all that its images come from.

    `private` is for those with a login, `subscribed` for the site, `mirror` a cache of `origin`.
    The stores are None where this host does not have them.
    """

    site: Site
    private: Registry
    subscribed: Registry
    origin: Registry
    mirror: Registry
    secure: WebServer
    store: ObjectStore | None
    swift: SwiftServers | None

    def configure(self, *, s3: Identity | None = None, swift: str = "") -> None:
        """Configure the nodes for all sources, with the site's credentials if given."""
        web, aliased = self.site.web, f"docker://{self.site.registry.host}/aliased"
        sections = {
            f"registry {self.private.host}": "insecure = yes",
            f"registry {self.subscribed.host}": "insecure = yes\nshared = yes\n"
            + self._secret("login.json", auth_file(self.subscribed.host)),
            f"registry {self.origin.host}": f"insecure = yes\nmirrors = {self.mirror.host}",
            f"registry {self.mirror.host}": "insecure = yes",
            f"registry 127.0.0.1:{web.port}": "insecure = yes",
            "library": f"url = {web.url()}",
            "shub": f"url = {web.url()}",
            "static pages": f"url = {web.url('/pages')}",
            "alias": f"tool = {aliased}/tool:1\nbio/* = {aliased}/*",
        }
        if self.store:
            sections["s3"] = f"url = {self.store.url}\nshared = yes\n"
            sections["s3"] += self._secret("s3", s3.file) if s3 else ""
        if self.swift:
            sections["swift"] = f"url = {self.swift.storage_url}\nshared = yes\n"
            sections["swift"] += self._secret("swift.rc", swift) if swift else ""
        text = "".join(f"[{name}]\n{lines}\n" for name, lines in sections.items())
        self.site.configure(text)

    def _secret(self, name: str, text: str) -> str:
        path = self.site.directory / name
        path.write_text(text)
        path.chmod(0o600)
        return f"auth_file = {path}"


@contextmanager
def started() -> Iterator[World]:
    """Start everything; end it afterwards."""
    with ExitStack() as stack:
        secure = stack.enter_context(WebServer(tls=True))
        # The account that fetches has to read it.
        secure.certificate.parent.chmod(0o755)
        variables = {"REQUESTS_CA_BUNDLE": str(secure.certificate)}
        origin = stack.enter_context(Registry())
        yield World(
            site=stack.enter_context(Site(nodes=2, variables=variables, users=USERS)),
            private=stack.enter_context(Registry(basic=True)),
            subscribed=stack.enter_context(Registry(basic=True)),
            origin=origin,
            mirror=stack.enter_context(Registry(mirror_of=origin.url)),
            secure=secure,
            store=None if ObjectStore.missing() else stack.enter_context(ObjectStore()),
            swift=None if SwiftServers.missing() else stack.enter_context(SwiftServers()),
        )
