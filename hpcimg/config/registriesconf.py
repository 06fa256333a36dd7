"""registries.conf as in podman and skopeo: mirrors, other locations, blocked registries.

containers-registries.conf(5), version 2. Short names, and version 1 of the format, are ignored.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from hpcimg import plainfile
from hpcimg.errors import ConfigError

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_LOCATION = re.compile(rf"{_HOST}(?:/[A-Za-z0-9._-]+)*")
_PREFIX = re.compile(
    rf"\*\.{_HOST}|{_HOST}(?:/[A-Za-z0-9._-]+)*(?::[A-Za-z0-9._-]+)?(?:@sha256:.*)?"
)
_PULLS = ("all", "digest-only", "tag-only")


class Mirror(NamedTuple):
    """One `[[registry.mirror]]`; `pull` is its purpose: all, digest-only or tag-only."""

    location: str
    insecure: bool
    pull: str


class Rule(NamedTuple):
    """One `[[registry]]`. `location` is "" if the prefix is the location.

    `wrong` says why it is invalid, and in which file: then only the prefix is set, if there is one.
    """

    prefix: str
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()
    wrong: str = ""


class Match(NamedTuple):
    """A rule, and the part of an image's name that it matched."""

    rule: Rule
    part: str


def read(path: str) -> tuple[Rule, ...]:
    """Read the file and the drop-ins in `PATH.d/`. Missing files count as empty.

    As in podman and skopeo, of two tables with one prefix that in the later file counts, and within
    a file the first. Raises ConfigError for an invalid file; an invalid table becomes a rule that
    says so.
    """
    rules: dict[str, Rule] = {}
    lost: list[Rule] = []
    for file in (path, *_drop_ins(f"{path}.d")):
        try:
            text = plainfile.read_text(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read", why=str(error)) from None
        in_file: dict[str, Rule] = {}
        for rule in parse(text, file):
            if rule.prefix:
                in_file.setdefault(rule.prefix, rule)
            else:
                lost.append(rule)
        rules.update(in_file)
    return (*rules.values(), *lost)


def parse(text: str, path: str) -> tuple[Rule, ...]:
    """Parse one file's text; `path` names it in errors. Raises ConfigError."""
    import tomllib  # 16 ms, only needed for registries

    try:
        tables = tomllib.loads(text).get("registry", [])
        return tuple(_rule(table, path) for table in _tables(tables, "registry"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be used", why=str(error), do="See containers-registries.conf(5)."
        ) from None


def is_location(text: str) -> bool:
    """Tell whether this is `HOST[:PORT][/PATH]`."""
    return _LOCATION.fullmatch(text) is not None


def find(rules: tuple[Rule, ...], name: str) -> Match | None:
    """Return the rule for `HOST/REPOSITORY[:TAG][@DIGEST]`: the one with the longest match."""
    matches = [Match(rule, part) for rule in rules if (part := _matched(rule.prefix, name))]
    # As in podman and skopeo: the longest as written, `*` included, and of two equally long ones
    # the first in alphabetical order.
    return min(matches, key=lambda m: (-len(m.rule.prefix), m.rule.prefix), default=None)


def _matched(prefix: str, name: str) -> str:
    """Return the part of a name that a prefix matches, "" if it does not match."""
    if prefix.startswith("*."):
        host = name.partition("/")[0]
        ends = (host.partition(":")[0], host)
        return next((end for end in ends if end.endswith(prefix[1:])), "")
    if not prefix or not name.startswith(prefix):
        return ""
    # A host without a port matches it with any.
    return prefix if name == prefix or name[len(prefix)] in "/:@" else ""


def _drop_ins(directory: str) -> list[str]:
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".conf"))
    except OSError:
        return []
    return [path for name in names if os.path.isfile(path := os.path.join(directory, name))]


def _rule(table: dict[str, Any], path: str) -> Rule:
    """Parse one table; if it is invalid, return at least what it applies to."""
    try:
        return _read_rule(table)
    except ValueError as error:
        about = next((t for k in ("prefix", "location") if isinstance(t := table.get(k), str)), "")
        about = about.rstrip("/")
        return Rule(about if _PREFIX.fullmatch(about) else "", wrong=f"{path}: {error}")


def _read_rule(table: dict[str, Any]) -> Rule:
    location, prefix = _text(table, "location"), _text(table, "prefix")
    prefix = (prefix or location).rstrip("/")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"[[registry]] needs a prefix or a location, not {prefix!r}")
    by_digest = _flag(table, "mirror-by-digest-only")
    host, slash, path = prefix.partition("/")
    return Rule(
        # In the form used by references.
        prefix=f"{host.lower().removesuffix(':443')}{slash}{path}",
        location="" if location in ("", prefix) else _location(location),
        insecure=_flag(table, "insecure"),
        blocked=_flag(table, "blocked"),
        mirrors=tuple(
            _mirror(mirror, by_digest=by_digest)
            for mirror in _tables(table.get("mirror", []), "registry.mirror")
        ),
    )


def _mirror(table: dict[str, Any], *, by_digest: bool) -> Mirror:
    pull = _text(table, "pull-from-mirror") or "all"
    if pull not in _PULLS:
        raise ValueError(f"pull-from-mirror is {pull!r}, not one of {', '.join(_PULLS)}")
    if by_digest:
        pull = "digest-only"
    return Mirror(_location(_text(table, "location")), _flag(table, "insecure"), pull)


def _location(text: str) -> str:
    text = text.rstrip("/")
    if not is_location(text):
        raise ValueError(f"the location {text!r} is not HOST[:PORT][/PATH]")
    return text


def _tables(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError(f"{name} is not an array of tables")  # the file's fault
    return value


def _text(table: dict[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")  # noqa: TRY004
    return value


def _flag(table: dict[str, Any], key: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is neither true nor false")  # noqa: TRY004
    return value
