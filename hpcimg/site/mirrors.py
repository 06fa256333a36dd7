"""Where to look for the image of a registry, as configured. Pure.

`[registry HOST]` in hpcimg.conf takes precedence over registries.conf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hpcimg import dockerhub, imagename
from hpcimg.config.keys import Registry
from hpcimg.config.registriesconf import Match, Rule, find, is_location
from hpcimg.errors import ConfigError, NotAllowed


class Location(NamedTuple):
    """A place to read from, `HOST[:PORT]/REPOSITORY`, and the site's settings for its host."""

    name: str
    insecure: bool
    auth_file: str
    shared: bool
    mirror: bool = False


def locate(
    registries: Mapping[str, Registry], rules: tuple[Rule, ...], rest: str
) -> tuple[Location, ...]:
    """Return the places for `HOST/REPOSITORY[:TAG][@DIGEST]` in order, the registry itself last.

    The registry is omitted if it is blocked and there are mirrors. Raises NotAllowed if the image
    is blocked, ConfigError if the table that matches it is invalid.
    """
    rest = _canonical(rest)
    wanted = imagename.split(rest)
    name, host = wanted.place, wanted.host
    match = find(rules, rest)
    if match and match.rule.wrong:
        raise ConfigError(
            f"{rest} cannot be resolved",
            why=match.rule.wrong,
            do="Tell the administrators. See containers-registries.conf(5).",
        )
    version = rest[len(name) :]
    places = [
        _location(registries, f"{mirror}{name[len(host) :]}", mirror=True)
        for mirror in registries.get(host, Registry()).mirrors or ()
    ]
    insecure, blocked_by = False, ""
    if match:
        insecure = match.rule.insecure
        blocked_by = match.rule.prefix if match.rule.blocked else ""
        if registries.get(host, Registry()).mirrors is None:
            places += _mirrors(registries, match, name, by_digest=bool(wanted.digest))
        if match.rule.location:
            name = _moved(name, match, match.rule.location)
            if not is_location(name):
                why = f"the table of {match.rule.prefix} leads to {name}, which is not a repository"
                raise ConfigError(f"{rest} cannot be resolved", why=why)
    # Each place must be allowed by its own table, not only the image: with `blocked` and mirrors,
    # only the mirrors are used, never the registry.
    places = [place for place in places if not _blocked(rules, f"{place.name}{version}")]
    blocked_by = blocked_by or _blocked(rules, f"{name}{version}")
    if not blocked_by:
        return (*places, _location(registries, name, insecure=insecure))
    if not places:
        raise NotAllowed(f"{rest} is not allowed at this site", why=f"{blocked_by} is blocked")
    return tuple(places)


def _blocked(rules: tuple[Rule, ...], name: str) -> str:
    """Return the prefix that blocks a place, "" if it is not blocked."""
    match = find(rules, _canonical(name))
    return match.rule.prefix if match and (match.rule.blocked or match.rule.wrong) else ""


def _mirrors(
    registries: Mapping[str, Registry], match: Match, name: str, *, by_digest: bool
) -> list[Location]:
    unfit = "tag-only" if by_digest else "digest-only"
    return [
        _location(
            registries,
            _moved(name, match, mirror.location),
            insecure=mirror.insecure,
            mirror=True,
        )
        for mirror in match.rule.mirrors
        if mirror.pull != unfit and is_location(_moved(name, match, mirror.location))
    ]


def _location(
    registries: Mapping[str, Registry], name: str, *, insecure: bool = False, mirror: bool = False
) -> Location:
    said = registries.get(dockerhub.canonical(imagename.split(name).host), Registry())
    return Location(
        name,
        insecure if said.insecure is None else said.insecure,
        said.auth_file,
        said.shared,
        mirror,
    )


def _moved(name: str, match: Match, location: str) -> str:
    """Return a name with the matched part replaced by a location; the result may be invalid."""
    # The matched part may include a tag, which the name does not.
    rest = name[len(imagename.split(match.part).place) :]
    if match.rule.prefix.startswith("*") and rest.startswith(":") and {"/", ":"} & set(location):
        return location + rest[len(rest.partition("/")[0]) :]  # it cannot be followed by a port
    return location + rest


def _canonical(rest: str) -> str:
    """Return a reference's rest with the canonical name of its host."""
    host, slash, path = rest.partition("/")
    return f"{dockerhub.canonical(host)}{slash}{path}"
