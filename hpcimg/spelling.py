"""The canonical spelling of hosts, web paths and image names in registries. Pure.

Two spellings of one address would be two addresses to a site's patterns, to registries.conf and to
the cache. Each function raises ValueError with the reason.
"""

from __future__ import annotations

import ipaddress
import re
import string
from urllib.parse import unquote

from hpcimg import dockerhub
from hpcimg.imagename import DIGEST, TAG

_HOST = frozenset(string.ascii_lowercase + string.digits + "-._")
_ALNUM = frozenset(string.ascii_lowercase + string.digits)
_REPOSITORY = _ALNUM | frozenset("._-")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")  # RFC 3986, 2.3
_DECODINGS = 3


def host(text: str, *, port: int) -> str:
    """Return `HOST[:PORT]` in lower case, without a trailing dot and without the default `port`."""
    name, bracket, rest = text.lower().partition("]")
    if bracket:
        if not name.startswith("[") or (rest and not rest.startswith(":")):
            raise ValueError(f"{text} is not a host name")
        try:
            name = f"[{ipaddress.IPv6Address(name[1:])}]"
        except ValueError:
            raise ValueError(f"{text} is not an IPv6 address") from None
        written = rest[1:]
    else:
        name, _, written = name.partition(":")
        if not name or not _HOST.issuperset(name) or name[0] in ".-" or ".." in name:
            raise ValueError(f"{text} is not a host name" if text else "there is no host")
        name = name.removesuffix(".")
        _check_number(name)
    if written and not (written.isdecimal() and len(written) <= 5 and 0 < int(written) < 65536):
        raise ValueError(f"{written} is not a port")
    return name if not written or int(written) == port else f"{name}:{int(written)}"


def _check_number(name: str) -> None:
    """Refuse 2130706433, 127.1 and 0177.0.0.1, which some programs treat as 127.0.0.1."""
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            ipaddress.IPv4Address(name)
        except ValueError:
            raise ValueError(f"{name} is not an IPv4 address in dotted decimal") from None


def web_path(path: str) -> str:
    """Return a path or query with characters that need no %XX unescaped (RFC 3986, 6.2.2)."""

    def plain(match: re.Match[str]) -> str:
        character = chr(int(match[1], 16))
        return character if character in _UNRESERVED else match[0].upper()

    before = ""
    while path != before:  # %%32e is %2e, and so a dot
        before, path = path, _ENCODED.sub(plain, path)
    return path


def readings(path: str) -> list[str]:
    """Return a web path, and every form that servers may treat it as: decoded, slashes merged."""
    found = [path]
    for _ in range(_DECODINGS):
        read = re.sub("/{2,}", "/", unquote(path, errors="replace").replace("\\", "/"))
        if read not in found:
            found.append(read)
        path = read
    return found


def has_dots(path: str) -> bool:
    """Tell whether a path contains `.` or `..`, including `%2e%2e` and `..;x`."""
    return any(
        part.partition(";")[0] in (".", "..") for read in readings(path) for part in read.split("/")
    )


def image_name(rest: str, *, hub: bool) -> str:
    """Return `HOST/REPOSITORY:TAG` or `HOST/REPOSITORY@DIGEST` for any way to write the name.

    That is Docker's `[HOST/]IMAGE`, where a host contains a dot or a port, and enroot's
    `[USER@][HOST#]IMAGE`, whose user is not needed to find credentials. With `hub`, an image
    without a host is on Docker Hub. A digest replaces a tag next to it, which then has no effect.
    """
    if "?" in rest:
        raise ValueError("the name of an image has no ? in it")
    if "," in rest:
        raise ValueError("it has a comma in it; write container: before each image, and a space")
    before, at, after = rest.partition("@")
    if at and "#" in after and "/" not in before:
        rest = after
    name, mark, path = rest.partition("#")
    if mark and "/" not in name:
        if not name:
            raise ValueError("it names no image, there is no host before the #")
    else:
        name, slash, path = rest.partition("/")
        if not slash:
            _check_bare(name)
        if hub and (not slash or not _is_host(name)):
            name, path = dockerhub.NAME, rest
    name = dockerhub.canonical(host(name, port=443))
    if hub and not _is_host(name):
        name += ":443"  # otherwise it would be spelled like a Docker Hub user
    path, at, digest = path.partition("@")
    repository, colon, tag = path.partition(":")
    _check_repository(repository)
    if name == dockerhub.NAME and "/" not in repository:
        repository = f"library/{repository}"
    if colon and not TAG.fullmatch(tag):
        raise ValueError(f"{tag} is not a tag" if tag else "the tag after the : is missing")
    if at and not DIGEST.fullmatch(digest):
        raise ValueError("a digest is @sha256: and 64 digits of 0-9 and a-f")
    return f"{name}/{repository}@{digest}" if at else f"{name}/{repository}:{tag or 'latest'}"


def _is_host(name: str) -> bool:
    """Tell whether Docker treats this as a host, not as the first part of an image's name."""
    return bool(set(".:[") & set(name)) or name == "localhost"


def _check_bare(name: str) -> None:
    """Refuse a registry without an image: what sbatch leaves of enroot's HOST#IMAGE."""
    words = name.partition("@")
    only = words[2] if words[1] and not words[2].startswith("sha256:") else words[0]
    only = only.partition(":")[0]
    if "." in only or only == "localhost":
        raise ValueError(
            f"{only} is a registry and names no image. In a script, sbatch treats # and "
            f"everything after it as a comment: write / instead"
        )


def _check_repository(repository: str) -> None:
    if not repository:
        raise ValueError("there is no image after the host")
    for part in repository.split("/"):
        if not part or not _REPOSITORY.issuperset(part) or not {part[0], part[-1]} <= _ALNUM:
            lower = repository != repository.lower()
            raise ValueError(
                "the names of images are in lower case" if lower
                else f"{part or '//'} cannot be part of an image's name"
            )  # fmt: skip
        if ".." in part:
            raise ValueError(f"{part} cannot be part of an image's name")
