"""This machine's processor, and the images that run on it, in the terms of registries."""

from __future__ import annotations

import functools
import platform
from typing import Any, NamedTuple

# Synonyms used by programs, and the variant that each implies.
_NAMES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
}
# The variant that is meant if none is given.
_PLAIN = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
# The processor flags that each level of the x86-64 psABI adds to the level below.
_AMD64_FLAGS = (
    ("v2", "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"),
    ("v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    ("v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)
_TEXT_MAX = 40


class Platform(NamedTuple):
    """The platform of an image, in Go's terms; `variant` is "" for the baseline."""

    architecture: str
    variant: str
    system: str = "linux"

    def __str__(self) -> str:
        name = f"{self.architecture}/{self.variant}" if self.variant else self.architecture
        return name if self.system == "linux" else f"{name} ({self.system})"


def go_name() -> str:
    """Return Go's name of this machine's processor: amd64, arm64, ppc64le ..."""
    machine = platform.machine()
    return _NAMES.get(machine, (machine, ""))[0]


def platform_of(said: dict[str, Any]) -> Platform:
    """Read the platform from an image's config or an index, in any of its spellings.

    The default system is Linux, the default processor is this machine's.
    """
    name = _text(said.get("architecture")) or go_name()
    architecture, implied = _NAMES.get(name, (name, ""))
    variant = _text(said.get("variant")) or implied
    if variant.isdecimal():
        variant = f"v{variant}"
    if variant == _PLAIN.get(architecture):
        variant = ""
    return Platform(architecture, variant, _text(said.get("os")) or "linux")


def rank(found: Platform) -> int | None:
    """Return how well an image for this platform runs here, None for not at all; lower is better.

    As in other tools, the baseline comes first; among variants, the highest.
    """
    if (found.system, found.architecture) != ("linux", go_name()):
        return None
    if not found.variant:
        return 0
    variants = _variants(found.architecture)
    return 1 + variants.index(found.variant) if found.variant in variants else None


def runs_here(found: Platform) -> bool:
    """Tell whether an image whose config states this platform runs here.

    In a config, an unknown variant is no reason to refuse the image.
    """
    known = {name for name, _ in _AMD64_FLAGS} if found.architecture == "amd64" else set()
    return rank(found if found.variant in known else found._replace(variant="")) is not None


@functools.cache
def _variants(architecture: str) -> tuple[str, ...]:
    """Return the variants besides the baseline that this processor supports, best first."""
    if architecture == "arm":
        return ("v6", "v5")
    if architecture != "amd64":
        return ()
    flags = _flags()
    found: list[str] = []
    for name, needed in _AMD64_FLAGS:
        if not flags.issuperset(needed.split()):
            break
        found.insert(0, name)
    return tuple(found)


def _flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", "rb") as file:
            line = next((line for line in file if line.startswith(b"flags")), b"")
    except OSError:
        return frozenset()
    return frozenset(line.decode().partition(":")[2].split())


def _text(value: object) -> str:
    return value.strip().lower()[:_TEXT_MAX] if isinstance(value, str) else ""
