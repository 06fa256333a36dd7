"""Which references this site allows."""

from __future__ import annotations

from hpcimg import reference
from hpcimg.config.keys import Config
from hpcimg.errors import ConfigError, NotAllowed
from hpcimg.reference import Reference


def parse(config: Config, text: str) -> Reference:
    """Read a reference as this site allows it. Raises BadReference, NotAllowed."""
    for name in config.statics:
        if name in reference.SCHEMES:
            raise ConfigError(f"[static {name}] cannot be a scheme", why="it is one already")
    wanted = reference.parse(text, config.aliases, config.statics)
    if reference.matches_any(wanted.address, config.deny) or not reference.matches_any(
        wanted.address, config.allow
    ):
        raise NotAllowed(f"{wanted.uri} is not allowed at this site")
    return wanted
