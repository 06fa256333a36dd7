"""What runs on this machine, by the names in registries and by the processor's flags."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hpcimg.image import architecture
from hpcimg.image.architecture import Platform, platform_of, rank, runs_here

V3 = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"


@pytest.fixture(autouse=True)
def a_v3_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(architecture, "_flags", lambda: frozenset(V3.split()))
    architecture._variants.cache_clear()
    yield
    architecture._variants.cache_clear()


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, "amd64"),
        ({"architecture": "x86_64", "os": "Linux"}, "amd64"),
        ({"architecture": "AMD64", "variant": "v1"}, "amd64"),
        ({"architecture": "amd64", "variant": "3"}, "amd64/v3"),
        ({"architecture": "aarch64"}, "arm64"),
        ({"architecture": "arm64", "variant": "v8", "os": "linux"}, "arm64"),
        ({"architecture": "armhf"}, "arm"),
        ({"architecture": "arm", "variant": "6"}, "arm/v6"),
        ({"architecture": "i686"}, "386"),
        ({"architecture": "amd64", "os": "windows"}, "amd64 (windows)"),
        ({"architecture": ["amd64"], "variant": 3, "os": None}, "amd64"),
        ({"architecture": "s390x", "variant": "z13"}, "s390x/z13"),
    ],
)
def test_one_name_for_one_platform(said: dict[str, object], found: str) -> None:
    assert str(platform_of(said)) == found


def test_the_plain_one_goes_first_then_the_highest_that_runs() -> None:
    variants = ["", "v3", "v2", "v4", "v9", "odd"]
    ranks = [rank(Platform("amd64", variant)) for variant in variants]
    assert ranks == [0, 1, 2, None, None, None]
    assert rank(Platform("arm64", "")) is None
    assert rank(Platform("amd64", "", "windows")) is None


def test_a_config_with_an_odd_variant_runs_and_one_of_a_higher_level_does_not() -> None:
    variants = ["", "v3", "odd", "v4"]
    assert [runs_here(Platform("amd64", v)) for v in variants] == [True, True, True, False]
