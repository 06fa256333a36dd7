"""Which references this site allows."""

from __future__ import annotations

from collections.abc import Iterator

from hpcimg import dockerhub, reference, spelling
from hpcimg.config.keys import Config
from hpcimg.errors import NotAllowed
from hpcimg.reference import Reference
from hpcimg.schemes import SCHEMES, of

_WILD = frozenset("*?[")
_TAG = ":latest"


def parse(config: Config, text: str) -> Reference:
    """Read a reference and check that the site allows it. Raises BadReference, NotAllowed."""
    wanted = reference.parse(text, config.aliases, config.statics)
    if not _allowed(config, wanted):
        raise NotAllowed(f"{wanted.uri} is not allowed at this site")
    return wanted


def _allowed(config: Config, wanted: Reference) -> bool:
    """Tell whether a reference is allowed, however a server interprets its address."""
    readings = wanted.readings()
    allow, deny = (
        [spelled for each in patterns for spelled in (each, _spelled(each))]
        for patterns in (config.allow, config.deny)
    )
    if not all(reference.matches_any(read, allow) for read in readings):
        return False
    readings += [other.address for other in _others(config, wanted)]
    return not any(reference.matches_any(read, deny) for read in readings)


def _spelled(pattern: str) -> str:
    """Return a pattern with its host in canonical form, if it has one without a wildcard."""
    scheme, mark, rest = pattern.partition("://")
    host, slash, path = rest.partition("/")
    if mark and of(scheme).begins in ("host", "service") and not _WILD & set(host):
        try:
            host = spelling.host(host, port=80 if scheme == "http" else 443)
        except ValueError:
            return pattern
        host = dockerhub.canonical(host) if of(scheme).in_registry else host
    return f"{scheme}{mark}{host}{slash}{path}"


def _others(config: Config, wanted: Reference) -> Iterator[Reference]:
    """Yield other references to the same image, to which `deny` may apply."""
    if of(wanted.scheme).in_registry:  # docker:// and oras:// are equivalent
        for name, row in SCHEMES.items():
            if row.in_registry:
                yield wanted._replace(scheme=name)
    url = config.service_url(wanted.scheme)
    if url:  # with the site's own service and the tag named, and without
        host = _host_of(url)
        beside = wanted.rest.removeprefix(f"{host}/")
        for rest in (beside, f"{host}/{beside}"):
            yield wanted._replace(rest=rest)
            yield wanted._replace(
                rest=rest.removesuffix(_TAG) if rest.endswith(_TAG) else rest + _TAG
            )


def _host_of(url: str) -> str:
    host = url.partition("://")[2].partition("/")[0]
    try:
        return spelling.host(host, port=443)
    except ValueError:
        return host
