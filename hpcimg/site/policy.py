"""Which references this site allows."""

from __future__ import annotations

from hpcimg import reference
from hpcimg.config.keys import Config
from hpcimg.errors import NotAllowed
from hpcimg.reference import Reference
from hpcimg.schemes import SCHEMES, of


def parse(config: Config, text: str) -> Reference:
    """Read a reference as this site allows it. Raises BadReference, NotAllowed."""
    wanted = reference.parse(text, config.aliases, config.statics)
    if not _allowed(config, wanted):
        raise NotAllowed(f"{wanted.uri} is not allowed at this site")
    return wanted


def _allowed(config: Config, wanted: Reference) -> bool:
    """Tell whether a reference is allowed, whatever a server makes of its address."""
    readings = wanted.readings()
    if not all(reference.matches_any(read, config.allow) for read in readings):
        return False
    # docker:// and oras:// are two words for the same image.
    others = [name for name, row in SCHEMES.items() if row.in_registry and name != wanted.scheme]
    if of(wanted.scheme).in_registry:
        readings += [wanted._replace(scheme=name).address for name in others]
    return not any(reference.matches_any(read, config.deny) for read in readings)
