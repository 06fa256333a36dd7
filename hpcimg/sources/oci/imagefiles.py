"""The files of an image by name, in a directory or in a tar file, without unpacking.

Their content is fixed, and retrying does not change it: whatever is wrong with them is the image's
fault, and no reason for a retry.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any

from hpcimg import jsontext, look
from hpcimg.decompression import ZSTD_MAGIC, zstd
from hpcimg.errors import BadReference, NotAnImage, NotFound
from hpcimg.fetch.contract import Blob
from hpcimg.fetch.sink import Sink
from hpcimg.sources.files import check_unwritten, explain, open_file

# tarfile imports these on demand: by then we may be unable to read them.
_COMPRESSIONS = (bz2, gzip, lzma)
_JSON_MAX = 4 << 20
_MEMBERS_MAX = 100_000
_CHUNK = 1 << 20
_DAMAGE = (
    tarfile.TarError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    *([zstd.ZstdError] if zstd else []),
)


class ImageFiles(ExitStack):
    """The files of one image, open until the end of the context.

    Attributes: uri, for errors; look, which changes when the image is replaced. If a name is in an
    archive twice, the last one counts, as when unpacking it.
    """

    def __init__(self, path: str, uri: str, *, archive: bool) -> None:
        super().__init__()
        self.uri = uri
        self._path = path
        self._members: dict[str, tarfile.TarInfo] | None = None
        # For a layout, the index changes.
        self._descriptor = open_file(path if archive else f"{path}/index.json")
        self.callback(os.close, self._descriptor)
        self._seen = os.fstat(self._descriptor)
        self.look = look.of(self._seen)
        if archive:
            self._members = self._list()

    def check_unwritten(self) -> None:
        """Raise Damaged if it was written in the meantime."""
        check_unwritten(self._descriptor, self._seen, self._path)

    def has(self, name: str) -> bool:
        """Tell whether the archive has a file with this name."""
        return self._members is None or name in self._members

    def size(self, name: str) -> int:
        """Return a file's length. Raises NotAnImage."""
        with self.open(name) as file:
            return file.seek(0, os.SEEK_END)

    def read(self, name: str) -> bytes:
        """Return a small file. Raises NotAnImage."""
        with self.open(name) as file:
            data = bytes(self._guarded(file.read, _JSON_MAX + 1))
        if len(data) > _JSON_MAX:
            raise self.broken(f"{name[:200]} in it is too large")
        return data

    def read_json(self, name: str) -> Any:
        """Return the content of a small JSON file. Raises NotAnImage."""
        try:
            return jsontext.read(self.read(name))
        except ValueError as error:
            raise self.broken(f"{name} in it cannot be read: {error}") from None

    def sha256(self, name: str) -> str:
        """Return the digest of a file, in hexadecimal. Raises NotAnImage."""
        digest = hashlib.sha256()
        with self.open(name) as file:
            while data := self._guarded(file.read, _CHUNK):
                digest.update(data)
        return digest.hexdigest()

    def copy(self, name: str, blob: Blob, sink: Sink, *, what: str) -> None:
        """Copy a file into a sink. Raises NotAnImage if `what` is not this blob."""
        if self.size(name) == blob.size_bytes:
            with self.open(name) as file:
                while data := self._guarded(file.read, _CHUNK):
                    sink.write(data)
            sink.tell()
            if sink.sha256() == blob.sha256:
                return
        self.check_unwritten()
        raise self.broken(f"{what} has the wrong length or digest")

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading. Raises NotAnImage if it does not exist."""
        if self._members is None:
            return open(open_file(f"{self._path}/{name}"), "rb")
        member = self._members.get(os.path.normpath(name))
        with contextlib.suppress(KeyError, RecursionError):  # a dangling link
            file = member and self._guarded(self._tar.extractfile, member)
            if file:
                return file  # type: ignore[no-any-return]
        raise self.broken(f"there is no {name[:200]} in it")

    def broken(self, why: str, *, do: str = "") -> NotAnImage:
        """Return the error for something that is not such an image."""
        do = do or "Save the image again."
        return NotAnImage(f"{self.uri} cannot be read", why=why, do=do)

    def _list(self) -> dict[str, tarfile.TarInfo]:
        file: Any = os.fdopen(self._descriptor, "rb", closefd=False)
        if os.pread(self._descriptor, len(ZSTD_MAGIC), 0) == ZSTD_MAGIC:
            if zstd is None:
                raise self.broken(
                    "the archive is compressed with zstd, which this node cannot decompress",
                    do="Decompress it with `zstd -d`.",
                )
            file = zstd.open(file)  # tarfile itself can do that since Python 3.14
        self._tar = self.enter_context(self._guarded(tarfile.open, fileobj=file))
        found: dict[str, tarfile.TarInfo] = {}
        while member := self._guarded(self._tar.next):
            found[os.path.normpath(member.name)] = member
            if len(found) > _MEMBERS_MAX:
                raise self.broken(f"it has more than {_MEMBERS_MAX} files in it")
        return found

    def _guarded(self, read: Any, *arguments: Any, **named: Any) -> Any:
        """Call a function that reads the files, and explain its errors."""
        try:
            return read(*arguments, **named)
        except OSError as error:
            if error.errno is None:  # raised by the decompressor
                raise self.broken(f"the archive is damaged: {error}") from error
            raise explain(self._path, error) from error
        except _DAMAGE as error:
            # tarfile has a line for each way in which it tried to open an archive.
            why = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
            raise self.broken(f"the archive is damaged: {why}") from error


def choose(images: Sequence[tuple[str, ...]], wanted: str, uri: str) -> list[int]:
    """Return the numbers of the matching images, by the names that each has.

    `wanted` is one of the names, or @ and a number as in skopeo; "" matches all. Raises NotFound.
    """
    if wanted[:1] == "@" and wanted[1:].isdecimal():
        found = [number for number in range(len(images)) if f"@{number}" == wanted]
    else:
        found = [number for number, names in enumerate(images) if not wanted or wanted in names]
    if not found:
        raise NotFound(f"there is no image {wanted!r} in {uri}", why=f"it holds {_shown(images)}")
    return found


def several(images: Sequence[tuple[str, ...]], uri: str) -> BadReference:
    """Return the error for a reference that does not say which image is wanted."""
    return BadReference(
        f"{uri} holds several images",
        why=f"they are {_shown(images)}",
        do="Append :NAME to the path, or :@0, :@1 and so on.",
    )


def _shown(images: Sequence[tuple[str, ...]]) -> str:
    names = sorted({name for names in images for name in names if name})
    return ", ".join(names)[:300] or f"{len(images) or 'no'} images without names"
