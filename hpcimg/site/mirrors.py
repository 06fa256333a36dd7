"""Where the image of a registry is looked for, as the site has it. Pure.

What hpcimg.conf says in `[registry HOST]` goes before registries.conf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hpcimg import dockerhub
from hpcimg.config.keys import Registry
from hpcimg.config.registriesconf import Match, Rule, find
from hpcimg.errors import NotAllowed


class Location(NamedTuple):
    """A place to read from, `HOST[:PORT]/REPOSITORY`, and what the site says about its host."""

    name: str
    insecure: bool
    auth_file: str
    shared: bool


def locate(
    registries: Mapping[str, Registry], rules: tuple[Rule, ...], rest: str
) -> tuple[Location, ...]:
    """Return where to look for `HOST/REPOSITORY[:TAG][@DIGEST]`, in order; at last, its own place.

    Raises NotAllowed for what is blocked.
    """
    rest = _canonical(rest)
    host = rest.partition("/")[0]
    match = find(rules, rest)
    if match and match.rule.blocked:
        raise NotAllowed(
            f"{rest} is not allowed at this site", why=f"{match.rule.prefix} is blocked"
        )
    name = _without_version(rest)
    places = [
        _location(registries, f"{mirror}{name[len(host) :]}")
        for mirror in registries.get(host, Registry()).mirrors or ()
    ]
    insecure = False
    if match:
        insecure = match.rule.insecure
        if registries.get(host, Registry()).mirrors is None:
            places += _mirrors(registries, match, name, by_digest="@" in rest)
        if match.rule.location:
            name = _moved(name, match.part, match.rule.location)
    return (*places, _location(registries, name, insecure=insecure))


def _mirrors(
    registries: Mapping[str, Registry], match: Match, name: str, *, by_digest: bool
) -> list[Location]:
    unfit = "tag-only" if by_digest else "digest-only"
    return [
        _location(registries, _moved(name, match.part, mirror.location), insecure=mirror.insecure)
        for mirror in match.rule.mirrors
        if mirror.pull != unfit
    ]


def _location(registries: Mapping[str, Registry], name: str, *, insecure: bool = False) -> Location:
    said = registries.get(dockerhub.canonical(name.partition("/")[0]), Registry())
    return Location(
        name,
        insecure if said.insecure is None else said.insecure,
        said.auth_file,
        said.shared,
    )


def _moved(name: str, part: str, location: str) -> str:
    # The part may have had a tag, of which the name has nothing.
    return location + name[len(_without_version(part)) :]


def _canonical(rest: str) -> str:
    """Return a reference's rest with the name that its host goes by."""
    host, slash, path = rest.partition("/")
    return f"{dockerhub.canonical(host)}{slash}{path}"


def _without_version(name: str) -> str:
    host, slash, path = name.partition("/")
    return f"{host}{slash}{path.partition('@')[0].partition(':')[0]}"
