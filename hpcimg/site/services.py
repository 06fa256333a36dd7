"""The service that a reference leads to, as configured."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Literal, NamedTuple

from hpcimg import plainfile, schemes
from hpcimg.config import registriesconf
from hpcimg.config.keys import Config
from hpcimg.config.registriesconf import Rule
from hpcimg.errors import ConfigError
from hpcimg.fetch.settings import Place
from hpcimg.http import certsd
from hpcimg.http.certsd import Certificates
from hpcimg.reference import Reference
from hpcimg.site import mirrors
from hpcimg.site.hosts import site_hosts
from hpcimg.site.mirrors import Location

log = logging.getLogger(__name__)
AMAZON_S3 = "https://s3.amazonaws.com"


# Which of the site's credentials: those whose images are shared, or also those whose are private.
Credentials = Literal["none", "shared", "all"]


class Service(NamedTuple):
    """A service and the site's credentials for it.

    `url` is its address, "" if references name their host. `locations` are the places to try, in
    this order: several if a registry has mirrors. `auth_text` are credentials that are not in a
    file of a location. `site_hosts` are all hosts that the site names, `HOST[:PORT]`.
    """

    locations: tuple[Location, ...]
    url: str = ""
    region: str = ""
    auth_text: str = ""
    site_hosts: tuple[str, ...] = ()

    @property
    def private(self) -> bool:
        """Whether the site has credentials whose images are private to the requester."""
        return any((at.auth_file or self.auth_text) and not at.shared for at in self.locations)

    def places(self, credentials: Credentials) -> tuple[Place, ...]:
        """Return the places to try, each with the site's credentials for it.

        Raises ConfigError if these cannot be read.
        """
        return tuple(self._place(at, credentials) for at in self.locations)

    def _place(self, at: Location, credentials: Credentials) -> Place:
        given = credentials == "all" or (at.shared and credentials == "shared")
        host, repository, _ = at.name.partition("/")
        in_tls = repository and not at.insecure
        certificates = certsd.read(host) if in_tls else Certificates()
        return Place(
            at.name,
            at.insecure,
            self._credentials(at) if given else "",
            at.mirror,
            certificates.authorities,
            # A process that runs as the user reads the key itself, if it can.
            "" if credentials == "none" else certificates.client,
        )

    def _credentials(self, at: Location) -> str:
        if not at.auth_file:
            return self.auth_text
        try:
            return plainfile.read_text(at.auth_file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{at.auth_file} cannot be read", why=str(error)) from None


def find(config: Config, wanted: Reference, environment: Mapping[str, str] = os.environ) -> Service:
    """Return the service that a reference leads to. Raises ConfigError, NotAllowed."""
    in_registry = schemes.of(wanted.scheme).in_registry
    rules = registriesconf.read(config.registries_conf) if in_registry else ()
    for rule in rules:
        if rule.wrong:
            log.warning("%s; this table is ignored", rule.wrong)
    service = _find(config, wanted, rules, environment)
    return service._replace(site_hosts=site_hosts(config, rules, service.url))


def _find(
    config: Config, wanted: Reference, rules: tuple[Rule, ...], environment: Mapping[str, str]
) -> Service:
    if schemes.of(wanted.scheme).in_registry:
        return Service(mirrors.locate(config.registries, rules, wanted.rest))
    if wanted.scheme == "s3":
        return _s3(config, environment)
    if wanted.scheme == "swift":
        at = Location("", False, config.swift_auth_file, config.swift_shared)
        return Service((at,), url=config.swift_url)
    said = config.registry(wanted.host)
    at = Location(wanted.host, bool(said.insecure), said.auth_file, said.shared)
    if wanted.scheme in config.statics:
        return Service((at,), url=config.statics[wanted.scheme].url)
    return Service((at,), url=config.service_url(wanted.scheme))


def _s3(config: Config, environment: Mapping[str, str]) -> Service:
    """Return the [s3] settings, completed from AWS's variables.

    Slurm passes none of these on: they come from a wrapper around the hook, or from the shell that
    runs `hpcimg stage`.
    """

    def first(said: str, *names: str) -> str:
        return next(filter(None, [said, *(environment.get(name, "") for name in names)]), "")

    url = first(config.s3_url, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or AMAZON_S3
    return Service(
        (Location("", False, config.s3_auth_file, config.s3_shared),),
        url=url.rstrip("/"),
        region=first(config.s3_region, "AWS_REGION", "AWS_DEFAULT_REGION"),
        auth_text=_keys(environment),
    )


def _keys(environment: Mapping[str, str]) -> str:
    """Return the keys in the environment in the format of a credentials file."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    lines = [f"{name.lower()} = {environment[name]}" for name in names if environment.get(name)]
    return "\n".join(["[default]", *lines]) if len(lines) > 1 else ""
