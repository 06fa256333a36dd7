"""This machine's processor, and which images run on it, by the names that registries use."""

from __future__ import annotations

import functools
import platform
from typing import Any, NamedTuple

# What programs write for one and the same, and the variant that such a name means.
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
# The variant that is meant where none is named.
_PLAIN = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
# The processor flags that the levels of the x86-64 psABI need besides those of the level below.
_AMD64_FLAGS = (
    ("v2", "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"),
    ("v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"),
    ("v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)
_TEXT_MAX = 40


class Platform(NamedTuple):
    """What an image is for, as Go names it; `variant` is "" for the plain one."""

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
    """Read what the config of an image, or an index about it, says in one of its spellings.

    A system that is not named is Linux, a processor that is not named is this machine's.
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
    """Return how well an image for this runs here, None for not at all; less is better.

    The plain one is the first, as other tools have it; of the variants, the highest goes first.
    """
    if (found.system, found.architecture) != ("linux", go_name()):
        return None
    if not found.variant:
        return 0
    variants = _variants(found.architecture)
    return 1 + variants.index(found.variant) if found.variant in variants else None


def runs_here(found: Platform) -> bool:
    """Tell whether the config of an image that says this lets it run here.

    There, a variant that nobody knows is no reason to refuse it.
    """
    known = {name for name, _ in _AMD64_FLAGS} if found.architecture == "amd64" else set()
    return rank(found if found.variant in known else found._replace(variant="")) is not None


@functools.cache
def _variants(architecture: str) -> tuple[str, ...]:
    """Return the variants above or below the plain one that this processor runs, the best first."""
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
