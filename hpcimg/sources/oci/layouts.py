"""oci: and oci-archive: : images in OCI layouts, in directories and tar files.

OCI Image Layout (OCI Image Specification 1.1). Read with the rights of this
process' account.
"""

from __future__ import annotations

import hashlib
from typing import Any

from hpcimg.errors import UserError
from hpcimg.fetch.contract import ORIGIN, Blob, bytes_of, text_of
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.image.architecture import platform_of
from hpcimg.reference import Reference
from hpcimg.sources.oci import image as oci
from hpcimg.sources.oci import manifests
from hpcimg.sources.oci.imagefiles import ImageFiles, choose, several
from hpcimg.sources.oci.manifests import Manifest, hex_of, is_digest

_NAMED = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_READ_MAX = 32  # images without a name, to see which of them are none


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch an image from a layout; see `hpcimg.sources`."""
    path, _, name = reference.rest.partition(":")
    uri = reference.uri
    with ImageFiles(path, uri, archive=reference.scheme != "oci") as files:
        if files.look == validator:
            return True
        oci.fetch_from(_Layout(files, name), sink, uri=uri, known_as=files.look, at_once=1)
        files.check_unwritten()
    return False


class _Layout:
    """An OCI image layout, as `hpcimg.sources.oci.image.Content` has it."""

    via = ORIGIN

    def __init__(self, files: ImageFiles, name: str) -> None:
        self._files = files
        self._name = name

    def manifest(self, known: str = "") -> Manifest | None:
        del known
        if not self._files.has("index.json") and self._files.has("manifest.json"):
            raise self._files.broken("Docker wrote this archive", do="Write docker-archive:PATH.")
        index = self._files.read_json("index.json")
        entries = index.get("manifests") if isinstance(index, dict) else None
        found = [
            entry
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and is_digest(entry.get("digest"))
        ]
        names = [_names_of(entry) for entry in found]
        wanted = [found[number] for number in choose(names, self._name, self._files.uri)]
        if _is_one_image(wanted):
            return Manifest("", {"manifests": wanted})
        digests = {entry["digest"] for entry in wanted}
        if 1 < len(digests) <= _READ_MAX:
            # Signatures may be beside the image that they are of.
            digests = set(filter(self._may_be_image, digests)) or digests
        if len(digests) > 1:
            raise several(names, self._files.uri)
        return self.read_manifest(digests.pop())

    def read_blob(self, digest: str) -> str:
        data = self._files.read(f"blobs/sha256/{hex_of(digest)}")
        if hashlib.sha256(data).hexdigest() != hex_of(digest):
            self._files.check_unwritten()
            raise self._files.broken(f"{digest} in it has another digest")
        return text_of(data)

    def download(self, blob: Blob, sink: Sink) -> bool:
        name = f"blobs/sha256/{blob.sha256}"
        self._files.copy(name, blob, sink, what=f"sha256:{blob.sha256} in it")
        return False

    def _may_be_image(self, digest: str) -> bool:
        try:
            return not manifests.is_artifact(self.read_manifest(digest))
        except UserError:  # what cannot be read may have been one
            return True

    def read_manifest(self, digest: str) -> Manifest:
        return manifests.parse(bytes_of(self.read_blob(digest)), digest, self._files.uri)


def _names_of(entry: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of an image, "" for one without: containerd has the whole one elsewhere."""
    notes = entry.get("annotations")
    named = [notes.get(key) for key in _NAMED] if isinstance(notes, dict) else []
    return tuple(dict.fromkeys(str(name) for name in named if name)) or ("",)


def _is_one_image(entries: list[dict[str, Any]]) -> bool:
    """Tell whether these are one image for several platforms: by one name, for each another."""
    platforms = {
        platform_of(said) for entry in entries if isinstance(said := entry.get("platform"), dict)
    }
    names = {_names_of(entry) for entry in entries}
    return len(entries) > 1 and len(platforms) == len(entries) and len(names) == 1
