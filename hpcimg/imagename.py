"""The name of an image in a registry: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`."""

from __future__ import annotations

import re
from typing import NamedTuple

from hpcimg.errors import BadReference

_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(f"{_COMPONENT}(?:/{_COMPONENT})*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Name(NamedTuple):
    """A registry, a repository in it, a tag and a digest; what is not given is ""."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def place(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}" if self.repository else self.host

    @property
    def version(self) -> str:
        """What to ask the registry for: the digest takes precedence over the tag."""
        return self.digest or self.tag


def split(text: str) -> Name:
    """Split a name into its parts, whatever is in them."""
    host, _, rest = text.partition("/")
    rest, _, digest = rest.partition("@")
    repository, _, tag = rest.partition(":")
    return Name(host, repository, tag, digest)


def parse(text: str) -> Name:
    """Split a name and check its parts; without a tag it is "latest". Raises BadReference."""
    name = split(text)
    if not _REPOSITORY.fullmatch(name.repository):
        raise BadReference(
            f"{text!r} names no repository", why="write HOST/REPOSITORY:TAG, in lower case"
        )
    if name.tag and not TAG.fullmatch(name.tag):
        raise BadReference(f"{name.tag!r} in {text!r} is not a tag")
    if "@" in text and not DIGEST.fullmatch(name.digest):
        raise BadReference(
            f"{name.digest!r} in {text!r} is not a digest", why="write @sha256: and 64 digits"
        )
    return name if name.tag else name._replace(tag="latest")
