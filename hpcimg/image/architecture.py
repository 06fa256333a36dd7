"""This machine's processor, by the name that registries and libraries use."""

from __future__ import annotations

import platform

_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


def go_name() -> str:
    """Return Go's name of this machine's processor: amd64, arm64, ppc64le ..."""
    machine = platform.machine()
    return _GO_NAMES.get(machine, machine)
