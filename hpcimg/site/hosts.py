"""The hosts that the site names in its configuration. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hpcimg import dockerhub, schemes
from hpcimg.config.keys import Config
from hpcimg.config.registriesconf import Rule

_PATTERN = frozenset("*?[")


def site_hosts(config: Config, rules: Iterable[Rule], *urls: str) -> tuple[str, ...]:
    """Return them as `HOST[:PORT]`. `urls` are additional addresses of services, "" for none."""
    return tuple(dict.fromkeys(filter(None, _named(config, rules, urls))))


def _named(config: Config, rules: Iterable[Rule], urls: Iterable[str]) -> Iterator[str]:
    for host, said in config.registries.items():
        yield dockerhub.address(host)
        yield from (mirror.partition("/")[0] for mirror in said.mirrors or ())
    for rule in rules:
        for location in (rule.prefix, rule.location, *(m.location for m in rule.mirrors)):
            yield location.partition("/")[0]
    for url in (*urls, *_services(config)):
        yield _host(f"{url}/")
    # Hosts in aliases and `allow` patterns, unless the host contains a wildcard.
    yield from map(_host, (*config.aliases.values(), *config.allow))


def _services(config: Config) -> Iterator[str]:
    yield from (static.url for static in config.statics.values())
    yield from (mirror.url for mirror in config.mirrors.values())


def _host(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    host, slash, _ = rest.partition("/")
    # A pattern could continue after the host.
    has_host = scheme in schemes.SCHEMES and schemes.of(scheme).begins in ("host", "service")
    return host if has_host and mark and slash and not _PATTERN & set(host) else ""
