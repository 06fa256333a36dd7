"""oci:, oci-archive: and docker-archive: : images in layers, in directories and tar files.

OCI Image Layout (OCI Image Specification 1.1), and what `docker save` writes.
Read with the rights of this process' account; nothing is unpacked.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import re
import tarfile
from contextlib import ExitStack
from typing import IO, Any

from hpcimg import jsontext
from hpcimg.errors import BadReference, Damaged, NotAnImage, NotFound
from hpcimg.fetch.contract import Blob, Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.image.architecture import platform_of
from hpcimg.reference import Reference
from hpcimg.sources.files import explain, look, open_file
from hpcimg.sources.oci import image as oci
from hpcimg.sources.oci import manifests
from hpcimg.sources.oci.manifests import Manifest, hex_of, is_digest

# tarfile imports these when it meets such an archive: then we may not read them any more.
_COMPRESSIONS = (bz2, gzip, lzma)
_JSON_MAX = 4 << 20
_MEMBERS_MAX = 100_000
_CHUNK = 1 << 20
_IN_BLOBS = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_NAMED = "org.opencontainers.image.ref.name"


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch an image from a layout or an archive; see `hpcimg.sources`."""
    path, _, name = reference.rest.partition(":")
    uri = reference.uri
    with _Files(path, uri, archive=reference.scheme != "oci") as files:
        if files.look == validator:
            return True
        if reference.scheme == "docker-archive":
            _fetch_docker(files, name, sink)
        else:
            oci.fetch_from(_Layout(files, name), sink, uri=uri, known_as=files.look, at_once=1)
        files.check_unchanged()
    return False


class _Files(ExitStack):
    """The files of an image by their names, in a directory or in a tar file.

    Attributes: uri, for errors; look, which changes when the image is replaced.
    """

    def __init__(self, path: str, uri: str, *, archive: bool) -> None:
        super().__init__()
        self.uri = uri
        self._path = path
        self._members: dict[str, tarfile.TarInfo] | None = None
        # Of a layout, the index is what changes.
        self._descriptor = open_file(path if archive else f"{path}/index.json")
        self.callback(os.close, self._descriptor)
        self.look = look(self._descriptor)
        if archive:
            self._members = self._list()

    def check_unchanged(self) -> None:
        """Raise Damaged where somebody wrote it in the meantime."""
        if look(self._descriptor) != self.look:
            raise Damaged(f"{self._path} changed while it was copied")

    def size(self, name: str) -> int:
        """Return a file's length. Raises NotAnImage."""
        with self.open(name) as file:
            return file.seek(0, os.SEEK_END)

    def read(self, name: str) -> bytes:
        """Return a small file. Raises NotAnImage."""
        with self.open(name) as file:
            data = file.read(_JSON_MAX + 1)
        if len(data) > _JSON_MAX:
            raise self.broken(f"{name} in it is too large")
        return data

    def read_json(self, name: str) -> Any:
        """Return what is in a small file. Raises NotAnImage."""
        try:
            return jsontext.read(self.read(name))
        except ValueError as error:
            raise self.broken(f"{name} in it cannot be read: {error}") from None

    def copy(self, name: str, sink: Sink) -> None:
        """Bring a file into a sink."""
        with self.open(name) as file:
            while data := self._guarded(file.read, _CHUNK):
                sink.write(data)
        sink.tell()

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading. Raises NotAnImage where there is none."""
        if self._members is None:
            return open(open_file(f"{self._path}/{name}"), "rb")
        member = self._members.get(name)
        with contextlib.suppress(KeyError, RecursionError):  # a link to what is not there
            file = member and self._guarded(self._tar.extractfile, member)
            if file:
                return file  # type: ignore[no-any-return]
        raise self.broken(f"there is no {name[:200]} in it")

    def broken(self, why: str) -> NotAnImage:
        """Return the error of something that is no such image."""
        return NotAnImage(f"{self.uri} cannot be read", why=why)

    def _list(self) -> dict[str, tarfile.TarInfo]:
        file = os.fdopen(self._descriptor, "rb", closefd=False)
        self._tar = self.enter_context(self._guarded(tarfile.open, fileobj=file))
        found: dict[str, tarfile.TarInfo] = {}
        while member := self._guarded(self._tar.next):
            found[os.path.normpath(member.name)] = member
            if len(found) > _MEMBERS_MAX:
                raise self.broken(f"it has more than {_MEMBERS_MAX} files in it")
        return found

    def _guarded(self, read: Any, *arguments: Any, **named: Any) -> Any:
        """Call what reads the archive, its errors explained."""
        try:
            return read(*arguments, **named)
        except OSError as error:
            if error.errno is None:  # a compressed archive's own
                raise self.broken(f"the archive is damaged: {error}") from error
            raise explain(self._path, error) from error
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise self.broken(f"the archive is damaged: {error}") from error


class _Layout:
    """An OCI image layout, as `hpcimg.sources.oci.image.Content` has it."""

    def __init__(self, files: _Files, name: str) -> None:
        self._files = files
        self._name = name

    def manifest(self, known: str = "") -> Manifest | None:
        del known
        index = self._files.read_json("index.json")
        entries = index.get("manifests") if isinstance(index, dict) else None
        found = [
            (_name_of(entry), entry)
            for entry in (entries if isinstance(entries, list) else [])
            if isinstance(entry, dict) and is_digest(entry.get("digest"))
        ]
        wanted = [(name, entry) for name, entry in found if self._name in ("", name)]
        if _is_one_image(wanted):
            return Manifest("", {"manifests": [entry for _, entry in wanted]})
        digests = list({entry["digest"]: None for _, entry in wanted})
        names = [name for name, _ in found]
        return self.read_manifest(_only(digests, names, self._name, self._files.uri))

    def read_blob(self, digest: str) -> str:
        data = self._files.read(f"blobs/sha256/{hex_of(digest)}")
        if hashlib.sha256(data).hexdigest() != hex_of(digest):
            raise Damaged(f"{self._files.uri} is damaged", why=f"{digest} has another digest")
        return data.decode(errors="replace")

    def download(self, blob: Blob, sink: Sink) -> bool:
        self._files.copy(f"blobs/sha256/{blob.sha256}", sink)
        return False

    def read_manifest(self, digest: str) -> Manifest:
        return manifests.parse(self.read_blob(digest).encode(), digest, self._files.uri)


def _name_of(entry: dict[str, Any]) -> str:
    notes = entry.get("annotations")
    return str(notes.get(_NAMED) or "") if isinstance(notes, dict) else ""


def _is_one_image(named: list[tuple[str, dict[str, Any]]]) -> bool:
    """Tell whether these are one image for several platforms: by one name, for each another."""
    platforms = {
        platform_of(said) for _, entry in named if isinstance(said := entry.get("platform"), dict)
    }
    return len(named) > 1 and len(platforms) == len(named) and len({n for n, _ in named}) == 1


def _fetch_docker(files: _Files, name: str, sink: Sink) -> None:
    """Fetch from what `docker save` wrote: manifest.json names config and layers by their files."""
    listed = files.read_json("manifest.json")
    images: dict[int, list[str]] = {}
    for number, image in enumerate(listed if isinstance(listed, list) else []):
        if isinstance(image, dict):
            tags = image.get("RepoTags")
            images[number] = [str(tag) for tag in tags] if isinstance(tags, list) else []
    wanted = [number for number, tags in images.items() if not name or name in tags]
    known = [tag for tags in images.values() for tag in tags]
    image = listed[_only(wanted, known, name, files.uri)]
    data = files.read(str(image.get("Config")))
    text = data.decode(errors="replace")
    config = manifests.parse_config(text, files.uri)
    names = image.get("Layers")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise files.broken("its manifest names no layers")
    manifests.check_number(len(names), files.uri)
    layers = tuple(
        Blob(digest, files.size(layer))
        for layer, digest in zip(names, _digests(files, names, config), strict=True)
    )
    offer = Offer(
        files.look,
        manifest=hashlib.sha256(data).hexdigest(),
        config=text,
        layers=layers,
    )
    for number, layer_sink in sink.offer_layers(offer).items():
        files.copy(names[number], layer_sink)


def _digests(files: _Files, names: list[str], config: dict[str, Any]) -> list[str]:
    """Return the sha256 of each layer's file: in its name, or in the config for a plain tar."""
    rootfs = config.get("rootfs")
    plain = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(plain, list) or len(plain) != len(names) or not all(map(is_digest, plain)):
        raise files.broken("its config does not say the digests of its layers")
    return [
        match[1] if (match := _IN_BLOBS.fullmatch(name)) else hex_of(digest)
        for name, digest in zip(names, plain, strict=True)
    ]


def _only(wanted: list[Any], known: Any, name: str, uri: str) -> Any:
    """Return the one image that is meant. Raises NotFound, BadReference."""
    if len(wanted) == 1:
        return wanted[0]
    names = ", ".join(sorted(filter(None, known)))[:300] or "images without names"
    if not wanted:
        raise NotFound(f"there is no image {name!r} in {uri}", why=f"it holds {names}")
    raise BadReference(
        f"{uri} holds several images", why=f"they are {names}", do="Write :NAME behind the path."
    )
