"""From an index to the image in it that is for this machine: OCI image specification, image-index.

An entry may be an index itself, and may say nothing of a platform: then its config does.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from hpcimg.errors import NotAnImage, NotFound, WrongArchitecture
from hpcimg.image import ociconfig
from hpcimg.image.architecture import Platform, go_name, platform_of, rank, runs_here
from hpcimg.sources.oci import manifests
from hpcimg.sources.oci.manifests import MANIFEST_TYPES, Manifest, is_digest

_DEPTH_MAX = 4
_READ_MAX = 32  # manifests: of an index of 4 MiB, each entry could be a request
_UNKNOWN = "unknown"  # the processor of what is no image, such as an attestation about one


class Content(Protocol):
    """What manifests and configs can be read from."""

    def read_manifest(self, digest: str) -> Manifest:
        """Return the manifest with this digest."""

    def read_blob(self, digest: str) -> str:
        """Return the text of a small blob, its digest checked."""


class _Entry(NamedTuple):
    digest: str
    rank: int | None  # None where the index does not say what it is for


def for_this_machine(content: Content, manifest: Manifest, uri: str) -> Manifest:
    """Follow an index to the manifest for this machine's processor.

    What is no index is returned as it is. Raises WrongArchitecture, NotAnImage.
    """
    search = _Search(content, uri)
    found = search.image(manifest, depth=0, said=True)
    if found:
        return found
    there = ", ".join(sorted(search.there))
    raise WrongArchitecture(
        f"{uri} has no image for this machine",
        why=f"it is for {there or 'none'}, this machine is {go_name()}",
    )


class _Search:
    """One search; `there` are the platforms that were met."""

    def __init__(self, content: Content, uri: str) -> None:
        self.there: set[str] = set()
        self._content = content
        self._uri = uri
        self._read = 0

    def image(self, manifest: Manifest, *, depth: int, said: bool) -> Manifest | None:
        """Return the image for this machine that this is or leads to, None where there is none.

        With `said`, the index that led here says that it is for this machine.
        """
        if "manifests" not in manifest.content:
            return manifest if said or self._is_for_here(manifest) else None
        if depth == _DEPTH_MAX:
            raise NotAnImage(f"{self._uri} holds no image", why="its indexes lead to ever more")
        missing: NotFound | None = None
        for entry in self._entries(manifest):
            self._read += 1
            if self._read > _READ_MAX:
                why = f"of {_READ_MAX} entries of its index none is for this machine"
                raise NotAnImage(f"{self._uri} holds no image", why=why)
            try:
                inner = self._content.read_manifest(entry.digest)
            except NotFound as error:
                if entry.rank is not None:
                    raise
                missing = missing or error  # of signatures and the like, some were cleared away
                continue
            inner = inner._replace(texts=manifest.texts + inner.texts)
            found = self.image(inner, depth=depth + 1, said=entry.rank is not None)
            if found:
                return found
        if missing:
            raise missing
        return None

    def _entries(self, index: Manifest) -> list[_Entry]:
        """Return what may be for this machine, the best first, at last what says nothing."""
        found = []
        for entry in index.content["manifests"]:
            if not isinstance(entry, dict) or not is_digest(entry.get("digest")):
                continue
            said = entry.get("platform")
            if not isinstance(said, dict) or not said.get("architecture"):
                if entry.get("mediaType", MANIFEST_TYPES[0]) in MANIFEST_TYPES:
                    found.append(_Entry(entry["digest"], None))
                continue
            platform = platform_of(said)
            how_well = rank(platform)
            if how_well is not None:
                found.append(_Entry(entry["digest"], how_well))
            else:
                self._meet(platform)
        return sorted(found, key=lambda entry: (entry.rank is None, entry.rank))

    def _is_for_here(self, manifest: Manifest) -> bool:
        """Tell whether an image is for this machine by its config."""
        if manifests.sif_layer(manifest):
            return True  # it says so itself, and is looked at when it is there
        if manifests.is_artifact(manifest):
            return False  # its config need not say what it is for, and then means this machine
        try:
            digest = manifests.config_digest(manifest, self._uri)
            platform = ociconfig.platform_in(self._content.read_blob(digest), self._uri)
        except NotAnImage:
            return False  # a signature, or whatever else may be in an index
        self._meet(platform)
        return runs_here(platform)

    def _meet(self, platform: Platform) -> None:
        if platform.architecture != _UNKNOWN:
            self.there.add(str(platform))
