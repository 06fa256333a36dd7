"""Docker Hub, the one registry whose name is not its address."""

from __future__ import annotations

NAME = "docker.io"
ADDRESS = "registry-1.docker.io"
# The last is its token server, under which enroot users store their login.
_NAMES = frozenset({NAME, ADDRESS, "index.docker.io", "auth.docker.io"})


def canonical(host: str) -> str:
    """Return the name of a host in the configuration and in credentials files."""
    host = host.lower().removesuffix(":443").removesuffix(".")
    return NAME if host in _NAMES else host


def address(host: str) -> str:
    """Return the host to connect to."""
    return ADDRESS if canonical(host) == NAME else host
