"""Where images come from: one module for each protocol, and one line here.

A source module has one function:

    fetch(reference, sink, *, validator, settings) -> bool

It runs in a process of its own that has no rights but to read what it fetches.
It makes one `Offer`, writes the file to the sink, and returns False; or it finds
with one request that what `validator` was about still holds, and returns True.
It raises `HpcimgError`. It imports no other part of hpcimg than what is below
the sources: transfer, retry, sink, fetching, reference, errors.
"""

MODULES = {
    "https": "hpcimg.sources.web",
    "http": "hpcimg.sources.web",
    "file": "hpcimg.sources.files",
    "docker": "hpcimg.sources.oci.image",
    "oras": "hpcimg.sources.oci.image",
    "oci": "hpcimg.sources.oci.layouts",
    "oci-archive": "hpcimg.sources.oci.layouts",
    "docker-archive": "hpcimg.sources.oci.layouts",
    "library": "hpcimg.sources.library",
    "shub": "hpcimg.sources.shub",
    "s3": "hpcimg.sources.s3",
    "swift": "hpcimg.sources.openstack.swift",
}
# Of schemes that the site configures under names of its own, as [static NAME].
STATIC = "hpcimg.sources.static"
# Where the job's user may read what the unprivileged account may not.
READS_AS_USER = frozenset(
    {"file", "docker", "oras", "oci", "oci-archive", "docker-archive", "s3", "swift"}
)
# What is looked at where it is mounted: no server is asked, and no login.
MOUNTED = frozenset({"file", "oci", "oci-archive", "docker-archive"})
# Whose images are in a registry, which may have mirrors.
IN_REGISTRIES = frozenset({"oras", "docker"})
