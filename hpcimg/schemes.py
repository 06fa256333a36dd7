"""The schemes of references: one row contains everything that the rest of hpcimg knows about one.

A new source is a module and a row here; `etc/hpcimg.lua` lists the same names for the submit hosts,
and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

# What follows the scheme: a host; a name, possibly preceded by a host; the name of an object at the
# service that the site configured; a path on a mounted file system.
Begins = Literal["host", "service", "name", "path"]


class Scheme(NamedTuple):
    """How references of one scheme are written, and how their images are fetched.

    `module` is the source. `slashes` distinguishes `scheme://` from `scheme:`. `in_registry` means
    an OCI registry, which may have mirrors. `as_user` means that the job's user may be able to read
    what the unprivileged account cannot. `query` means that an address may have a query, which can
    contain a secret. `parts` is the number of parts of a name without a host, if the host of a
    service may be left out. `layers` means that images come in layers, to be converted.
    """

    module: str
    begins: Begins
    slashes: bool = True
    in_registry: bool = False
    as_user: bool = False
    query: bool = False
    parts: int = 0
    layers: bool = False

    @property
    def mounted(self) -> bool:
        """Whether images are read from a mounted file system, without a server."""
        return self.begins == "path"


_LAYOUTS = Scheme("hpcimg.sources.oci.layouts", "path", slashes=False, as_user=True, layers=True)
_DOCKER_ARCHIVE = _LAYOUTS._replace(module="hpcimg.sources.oci.dockerarchive")
SCHEMES: Mapping[str, Scheme] = {
    "https": Scheme("hpcimg.sources.web", "host", query=True),
    "http": Scheme("hpcimg.sources.web", "host", query=True),
    "file": Scheme("hpcimg.sources.files", "path", as_user=True),
    "oras": Scheme("hpcimg.sources.oci.image", "host", in_registry=True, as_user=True),
    "docker": Scheme(
        "hpcimg.sources.oci.image", "host", in_registry=True, as_user=True, layers=True
    ),
    "library": Scheme("hpcimg.sources.library", "service", parts=3),
    "shub": Scheme("hpcimg.sources.shub", "service", parts=2),
    "s3": Scheme("hpcimg.sources.s3", "name", as_user=True),
    "swift": Scheme("hpcimg.sources.openstack.swift", "name", as_user=True),
    "oci": _LAYOUTS,
    "oci-archive": _LAYOUTS,
    "docker-archive": _DOCKER_ARCHIVE,
}
# Schemes that the site defines, as [static NAME].
STATIC = Scheme("hpcimg.sources.static", "name")


def of(name: str) -> Scheme:
    """Return the row of a scheme; one without a row is defined by the site."""
    return SCHEMES.get(name, STATIC)
