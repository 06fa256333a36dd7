"""References: what a user may write to name an image, and what it stands for.

Pure: no file, no network, no configuration but what is passed in.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from hpcimg.errors import BadReference, printable

MAX_LENGTH = 1024
# What would need quoting in a shell, in JSON or in a task prolog's line has no
# place in an address, and its absence keeps every later quoting trivial.
ALLOWED = frozenset(string.ascii_letters + string.digits + "-._~:/?#[]@!&()*+,;=%")
# How the schemes are spelled, for hints; what can be fetched is said by the sources.
SCHEMES = (
    "https", "http", "file", "oras", "docker", "library", "shub", "s3", "swift",
    "oci", "oci-archive", "docker-archive",
)  # fmt: skip
_HOST_SCHEMES = ("https", "http", "oras", "docker")
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_PATH_SCHEMES = ("oci", "oci-archive", "docker-archive")
_WITH_QUERY = ("https", "http")
_LEFT_OUT = "..."
_PASSWORD = re.compile(r".*:.*@(?!sha256:)")


class Reference(NamedTuple):
    """An image as it was asked for.

    `rest` is what follows `scheme://`, for `file` an absolute path.
    """

    scheme: str
    rest: str

    @property
    def address(self) -> str:
        """The canonical spelling, which identifies the reference; a query may hold a signature."""
        return f"{self.scheme}:{'' if self.scheme in _PATH_SCHEMES else '//'}{self.rest}"

    @property
    def uri(self) -> str:
        """The address as it is shown and kept: without the values of a query."""
        return without_query(self.address) if self.scheme in _WITH_QUERY else self.address

    @property
    def pinned(self) -> bool:
        """Whether a digest in the reference names one content for ever."""
        return self.scheme in ("oras", "docker") and "@sha256:" in self.rest

    @property
    def mounted_file(self) -> str:
        """The file that is another one where a mounted image is; "" for what is not mounted."""
        if self.scheme == "file":
            return self.rest
        if self.scheme not in _PATH_SCHEMES:
            return ""
        path = self.rest.partition(":")[0]
        return f"{path}/index.json" if self.scheme == "oci" else path

    @property
    def host(self) -> str:
        """The host, with its port if there is one; "" for paths."""
        return self.rest.partition("/")[0]


def parse(
    text: str, aliases: Mapping[str, str] | None = None, schemes: Collection[str] = ()
) -> Reference:
    """Read a reference: a URI, an absolute path, or an alias of the site.

    `aliases` maps a name to a URI, or `PREFIX/*` to `URI/*`. Exact names come
    first, then the longest prefix. `schemes` are the site's own. Raises
    BadReference, with the nearest right spelling where there is one.
    """
    _check_characters(text)
    expanded = _expand(text, aliases or {})
    if expanded is None:
        return _parse_uri(text, schemes)
    _check_characters(expanded)
    return _parse_uri(expanded, schemes)


def without_query(text: str) -> str:
    """Return a text with the names in a query, and without what they stand for."""
    path, mark, query = text.partition("?")
    if not mark:
        return text
    parts = (part.partition("=") for part in query.split("&"))
    return f"{path}?" + "&".join(f"{name}={_LEFT_OUT}" if equals else _LEFT_OUT
                                 for name, equals, _ in parts)  # fmt: skip


def _told(text: str) -> str:
    """Return what a user wrote as it may be told to others: without what may be a secret."""
    path, mark, query = text.partition("?")
    scheme, slashes, rest = path.partition("//")
    if not slashes:
        scheme, rest = "", path
    return without_query(f"{scheme}{slashes}{_PASSWORD.sub(f'{_LEFT_OUT}@', rest)}{mark}{query}")


def _check_characters(text: str) -> None:
    if not text:
        raise BadReference(
            "container: is followed by nothing", do="Write container:URI without a space."
        )
    if len(text) > MAX_LENGTH:
        raise BadReference(
            f"a reference of {len(text)} characters is too long",
            why=f"{MAX_LENGTH} is the limit; it begins {printable(_told(text)[:60])!r}",
        )
    wrong = sorted(set(text) - ALLOWED)
    if wrong:
        shown = " ".join(printable(c) for c in wrong[:8])
        raise BadReference(
            f"'{printable(_told(text)[:200])}' is not a reference to an image",
            why=f"it holds characters that no address has: {shown}",
            do="Variables are not replaced in a comment; write them out." if "$" in wrong else "",
        )


def _expand(text: str, aliases: Mapping[str, str]) -> str | None:
    if text in aliases and not text.endswith("/*"):
        return aliases[text]
    prefixes = [name[:-1] for name in aliases if name.endswith("/*") and text.startswith(name[:-1])]
    if not prefixes:
        return None
    longest = max(prefixes, key=len)
    return aliases[longest + "*"].removesuffix("*") + text[len(longest) :]


def _parse_uri(text: str, more: Collection[str]) -> Reference:
    if text.startswith("/"):
        return _path(text, text)
    scheme, colon, rest = text.partition(":")
    lowered = scheme.lower()
    if "=" in scheme:
        name, _, named = text.partition("=")
        right = "".join(c if c.isalnum() else "_" for c in name)
        right = f"_{right}" if right[:1].isdigit() else right
        raise _bad(text, f"{name!r} cannot be a name", f"{right}={named}" if right else "")
    if colon and lowered in _PATH_SCHEMES and rest and not rest.startswith("//"):
        if not rest.startswith("/"):
            raise _bad(text, "the path is not absolute", f"{lowered}:/{rest.lstrip('./')}")
        _check_plain(text, rest)
        return Reference(lowered, rest)
    if not colon or not rest.startswith("//"):
        raise _not_a_uri(text, lowered if colon else "", rest)
    if lowered in _PATH_SCHEMES:
        raise _bad(text, "this scheme takes no //", f"{lowered}:/{rest.lstrip('/')}")
    if lowered not in SCHEMES and lowered not in more:
        near = difflib.get_close_matches(lowered, SCHEMES, n=1)
        raise _bad(
            text,
            f"{scheme}:// is not known",
            f"{near[0]}:{rest}" if near else "",
            do=f"Known are {', '.join(f'{s}://' for s in SCHEMES if s not in _PATH_SCHEMES)}.",
        )
    rest = rest[2:]
    if lowered == "file":
        return _path(text, rest)
    return _address(text, lowered, rest)


def _path(text: str, path: str) -> Reference:
    if not path.startswith("/"):
        raise _bad(text, "the path is not absolute", f"file:///{path}")
    if path.endswith("/"):
        raise BadReference(f"{_told(text)!r} names a directory", do="Name the image file in it.")
    _check_plain(text, path)
    return Reference("file", path)


def _check_plain(text: str, path: str) -> None:
    if any(part in (".", "..") for part in path.split("/")):
        raise BadReference(
            f"{_told(text)!r} is not a plain path",
            why="it has . or .. in it",
            do="Write the path out.",
        )


def _address(text: str, scheme: str, rest: str) -> Reference:
    host, _, path = rest.partition("/")
    if _has_userinfo(scheme, host):
        # Comments are readable by everybody: who puts a password there has published it.
        raise BadReference(
            f"a {scheme}:// address with user:password@ in it is refused",
            why="comments are public, and so is a password in one",
            do="Leave the credentials out; change the password, since others may have read it.",
        )
    if scheme in ("http", "https"):
        rest = rest.partition("#")[0]
    if scheme == "docker" and host:
        rest = _docker_name(rest)
        host = rest.partition("/")[0]
    if not host or (scheme in ("http", "https") and not path):
        raise BadReference(
            f"{_told(text)!r} names no image", why="something is missing after the //"
        )
    if scheme in _HOST_SCHEMES:  # so that a site's patterns need only one spelling
        rest = host.lower() + rest[len(host) :]
    return Reference(scheme, rest)


def _docker_name(rest: str) -> str:
    """Return HOST/REPOSITORY with a tag or digest, for all ways to write it.

    Docker's [HOST/]IMAGE, where a host is what has a dot or a port in it; and
    enroot's [USER@][HOST#]IMAGE, whose user is not needed to find credentials.
    """
    before, at, after = rest.partition("@")
    if at and "#" in after and "/" not in before:
        rest = after
    host, mark, path = rest.partition("#")
    if not mark or "/" in host:
        host, slash, path = rest.partition("/")
        if not slash or not (set(".:") & set(host) or host == "localhost"):
            host, path = "docker.io", rest
    if host in _DOCKER_HUB:
        host = "docker.io"
        path = path if "/" in path.partition("@")[0] else f"library/{path}"
    if "@" not in path and ":" not in path.rpartition("/")[2]:
        path += ":latest"
    return f"{host}/{path}"


def _has_userinfo(scheme: str, host: str) -> bool:
    if scheme != "docker":
        return "@" in host
    named, _, _ = host.partition("@sha256:")  # docker://ubuntu@sha256:...
    before, at, after = named.rpartition("@")
    # Enroot's docker://USER@REGISTRY#IMAGE has a name and no password.
    return bool(at) and not ("#" in after and not {":", "@"} & set(before))


def _not_a_uri(text: str, scheme: str, rest: str) -> BadReference:
    relative = not scheme and text.endswith((".sif", ".simg", ".squashfs", ".sqfs"))
    if relative or text.startswith(("./", "../", "~")):
        return BadReference(
            f"{_told(text)!r} is a relative path",
            why="each node would look for it in another directory",
            do="Write the absolute path.",
        )
    if scheme in SCHEMES:
        slashes = ":///" if scheme == "file" else "://"
        return _bad(text, "the // is missing", f"{scheme}{slashes}{rest.lstrip('/')}")
    return _bad(text, "it has no scheme and is no alias of this site", f"docker://{text}")


def _bad(text: str, why: str, meant: str = "", *, do: str = "") -> BadReference:
    hint = f"; did you mean {_told(meant)}" if meant else ""
    return BadReference(f"{_told(text)!r} is not a reference to an image", why=why + hint, do=do)


def matches_any(uri: str, patterns: Iterable[str]) -> bool:
    """Tell whether a canonical URI matches one of the shell-style patterns."""
    return any(fnmatchcase(uri, pattern) for pattern in patterns)
