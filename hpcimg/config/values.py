"""Parsers for the values of the configuration: each raises ValueError with what to write."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from hpcimg.config import files as conffiles
from hpcimg.config.registriesconf import is_location
from hpcimg.units import parse_percent, parse_size

_REGION = re.compile(r"[a-z0-9-]{1,64}")
# For squashfs file systems, with the highest level; 0 if there are no levels.
_COMPRESSORS = {"lz4": 0, "xz": 0, "gzip": 9, "zstd": 22}


class Size(NamedTuple):
    """A size in bytes, or a percentage of a file system."""

    size_bytes: int = 0
    percent: float = 0.0

    def of(self, total_bytes: int) -> int:
        """Return the size in bytes on a file system of that size."""
        return self.size_bytes or int(total_bytes * self.percent / 100)


def path(text: str) -> str:
    """Parse an absolute path; `%n` in it is the node's name."""
    found = text.replace("%n", conffiles.node_name())
    # Paths appear unquoted in task lines, JSON and colon-separated lists.
    if not found.startswith("/") or any(not c.isprintable() or c in ":\"'\\ " for c in found):
        raise ValueError(f"{text!r} is not an absolute path without spaces, quotes and colons")
    if found != os.path.normpath(found):
        raise ValueError(f"{text!r} is not normalized; write {os.path.normpath(found)}")
    return found


def size(text: str) -> Size:
    """Parse 200G or 80%."""
    if text.endswith("%"):
        return Size(percent=parse_percent(text))
    return Size(size_bytes=parse_size(text))


def boolean(text: str) -> bool:
    """Parse yes or no."""
    known = {**dict.fromkeys(conffiles.YES, True), **dict.fromkeys(("no", "false", "off"), False)}
    if text.lower() not in known:
        raise ValueError(f"{text!r} is neither yes nor no")
    return known[text.lower()]


def url(text: str) -> str:
    """Parse the address of a service."""
    if not text.startswith(("https://", "http://")) or "@" in text or not text.isprintable():
        raise ValueError(f"{text!r} is not an address; write https://HOST/PATH")
    return text.rstrip("/")


def region(text: str) -> str:
    """Parse the name of a region."""
    if not _REGION.fullmatch(text):
        raise ValueError(f"{text!r} is not a region; write one like eu-west-1")
    return text


def optional(read: Callable[[str], str]) -> Callable[[str], str]:
    """Return a parser that also accepts an empty value."""
    return lambda text: read(text) if text else ""


def count(text: str) -> int:
    """Parse a number."""
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a number")
    return int(text)


def port(text: str) -> int:
    """Read the first of 16 ports, none of which takes root to listen at."""
    number = count(text)
    if not 1024 <= number <= 65520:
        raise ValueError(f"{text!r} is not a port from 1024 to 65520")
    return number


def words(text: str) -> tuple[str, ...]:
    """Parse words separated by blanks or commas."""
    return tuple(text.replace(",", " ").split())


def networks(text: str) -> tuple[str, ...]:
    """Parse IPv4 and IPv6 networks."""
    for word in words(text):
        try:
            ipaddress.ip_network(word)
        except ValueError:
            raise ValueError(f"{word!r} is not a network; write 10.0.0.0/8 or fd00::/8") from None
    return words(text)


def mirrors(text: str) -> tuple[str, ...]:
    """Parse locations of registries."""
    for word in words(text):
        if not is_location(word):
            raise ValueError(f"{word!r} is not a mirror; write HOST[:PORT][/PREFIX]")
    return words(text)


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser for one of these words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return read


def compression(text: str) -> str:
    """Parse a squashfs compressor, with an optional level."""
    name, colon, level = text.partition(":")
    most = _COMPRESSORS.get(name, -1)
    if most < 0 or (colon and not (level.isdecimal() and 1 <= int(level) <= most)):
        raise ValueError(
            f"{text!r} is not a compression; write lz4, xz, gzip, zstd, gzip:1 to gzip:9 "
            "or zstd:1 to zstd:22"
        )
    return text


def verifier(text: str) -> str:
    """Parse none, sif or the path of a program."""
    return text if text in ("none", "sif") else path(text)


def log_target(text: str) -> str:
    """Parse syslog, stderr or a path."""
    return text if text in ("syslog", "stderr") else path(text)
