"""The schemes of references: one row says all that the rest of hpcimg has to know of one.

A new source is a module and a row here; `etc/hpcimg.lua` lists the same names for the
submit hosts, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

# What follows the scheme: a host; a name that may have a host in front; the name of an
# object at the service that the site configures; a path of a mounted file system.
Begins = Literal["host", "service", "name", "path"]


class Scheme(NamedTuple):
    """How the references of one scheme are written, and how their images are fetched.

    `module` is the source. `slashes` tells `scheme://` from `scheme:`. `in_registry`
    is for images in an OCI registry, which may have mirrors. `as_user` is where the
    job's user may read what the unprivileged account may not. `query` is where an
    address has a query, which may hold a secret. `parts` is, where a service's host may be left
    out, how many parts a name has without it.
    """

    module: str
    begins: Begins
    slashes: bool = True
    in_registry: bool = False
    as_user: bool = False
    query: bool = False
    parts: int = 0

    @property
    def mounted(self) -> bool:
        """Whether images are read from a mounted file system, which costs no server anything."""
        return self.begins == "path"


_LAYOUTS = Scheme("hpcimg.sources.oci.layouts", "path", slashes=False, as_user=True)
_DOCKER_ARCHIVE = _LAYOUTS._replace(module="hpcimg.sources.oci.dockerarchive")
SCHEMES: Mapping[str, Scheme] = {
    "https": Scheme("hpcimg.sources.web", "host", query=True),
    "http": Scheme("hpcimg.sources.web", "host", query=True),
    "file": Scheme("hpcimg.sources.files", "path", as_user=True),
    "oras": Scheme("hpcimg.sources.oci.image", "host", in_registry=True, as_user=True),
    "docker": Scheme("hpcimg.sources.oci.image", "host", in_registry=True, as_user=True),
    "library": Scheme("hpcimg.sources.library", "service", parts=3),
    "shub": Scheme("hpcimg.sources.shub", "service", parts=2),
    "s3": Scheme("hpcimg.sources.s3", "name", as_user=True),
    "swift": Scheme("hpcimg.sources.openstack.swift", "name", as_user=True),
    "oci": _LAYOUTS,
    "oci-archive": _LAYOUTS,
    "docker-archive": _DOCKER_ARCHIVE,
}
# Of the schemes that the site configures under names of its own, as [static NAME].
STATIC = Scheme("hpcimg.sources.static", "name")


def of(name: str) -> Scheme:
    """Return the row of a scheme; what is in no row is one of the site's own."""
    return SCHEMES.get(name, STATIC)
