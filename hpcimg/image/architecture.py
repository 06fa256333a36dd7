"""The names of processors that registries and libraries use."""

from __future__ import annotations

import platform

# Linux's names, and others that image configurations have had: Go's are what is specified.
_GO_NAMES = {
    "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386",
    "armv7l": "arm", "armhf": "arm",
}  # fmt: skip


def go_name(machine: str = "") -> str:
    """Return Go's name of a processor, by default of this machine's: amd64, arm64, ppc64le ..."""
    machine = machine or platform.machine()
    return _GO_NAMES.get(machine, machine)
