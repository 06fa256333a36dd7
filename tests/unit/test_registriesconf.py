"""registries.conf, by tables, and what hpcimg.conf has to say beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcimg.config import registriesconf
from hpcimg.config.keys import Registry
from hpcimg.errors import ConfigError, NotAllowed
from hpcimg.site.mirrors import Location, locate

DIGEST = "sha256:" + "0" * 64
CONF = """
unqualified-search-registries = ["docker.io"]
short-name-mode = "enforcing"
[aliases]
"x" = "docker.io/library/x"

[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "hub-mirror.example.org:5000/hub"
[[registry.mirror]]
location = "localhost:5000"
insecure = true
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example.org"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "example.com/foo"
location = "internal.example.net/bar"
insecure = true

[[registry]]
prefix = "example.com/foo/deep"
blocked = true

[[registry]]
prefix = "*.example.com"
[[registry.mirror]]
location = "mirror.example.net/wild"

[[registry]]
prefix = "*.b.example.com"
blocked = true

[[registry]]
prefix = "a.b.example.com"
mirror-by-digest-only = true
[[registry.mirror]]
location = "m.example.net"

[[registry]]
prefix = "example.com/pinned/x:1"
location = "internal.example.net/x"

[registries.block]
registries = ["v1.example.org"]
"""


@pytest.fixture
def rules() -> tuple[registriesconf.Rule, ...]:
    return registriesconf.parse(CONF, "registries.conf")


@pytest.mark.parametrize(
    ("rest", "places"),
    [
        ("plain.example.org/x:1", ["plain.example.org/x"]),
        ("v1.example.org/x", ["v1.example.org/x"]),
        (
            "docker.io/library/x:1",
            [
                "hub-mirror.example.org:5000/hub/library/x",
                "tags.example.org/library/x",
                "docker.io/library/x",
            ],
        ),
        (
            f"index.docker.io/library/x:1@{DIGEST}",
            [
                "hub-mirror.example.org:5000/hub/library/x",
                "localhost:5000/library/x !",
                "docker.io/library/x",
            ],
        ),
        ("docker.io/lab/x@" + DIGEST, ["hub-mirror.example.org:5000/hub/lab/x",
                                          "localhost:5000/lab/x !", "docker.io/lab/x"]),
        ("docker.io.example.org/x", ["docker.io.example.org/x"]),
        ("docker.io:5000/x", ["docker.io:5000/x"]),
        ("example.com/foo/img:1", ["internal.example.net/bar/img !"]),
        ("example.com/foo", ["internal.example.net/bar !"]),
        ("example.com/food/img", ["example.com/food/img"]),
        ("a.example.com/x", ["mirror.example.net/wild/x", "a.example.com/x"]),
        ("c.a.example.com:5000/x", ["mirror.example.net/wild/x", "c.a.example.com:5000/x"]),
        ("a.b.example.com/x:1", ["a.b.example.com/x"]),
        (f"a.b.example.com/x@{DIGEST}", ["m.example.net/x", "a.b.example.com/x"]),
        ("badexample.com/x", ["badexample.com/x"]),
        ("example.com/pinned/x:1", ["internal.example.net/x"]),
        ("example.com/pinned/x:2", ["example.com/pinned/x"]),
    ],
)  # fmt: skip
def test_where_to_look(
    rules: tuple[registriesconf.Rule, ...], rest: str, places: list[str]
) -> None:
    found = locate({}, rules, rest)
    assert [f"{at.name}{' !' if at.insecure else ''}" for at in found] == places


@pytest.mark.parametrize("rest", ["example.com/foo/deep/x:1", "c.b.example.com/x"])
def test_what_is_blocked(rules: tuple[registriesconf.Rule, ...], rest: str) -> None:
    with pytest.raises(NotAllowed, match=r"is not allowed at this site: .* is blocked"):
        locate({}, rules, rest)


def test_hpcimg_conf_goes_first(rules: tuple[registriesconf.Rule, ...]) -> None:
    said = {
        "docker.io": Registry(mirrors=("m:1/proxy", "localhost:5000"), auth_file="/hub"),
        "m:1": Registry(auth_file="/m", shared=True),
        "localhost:5000": Registry(insecure=False),
        "internal.example.net": Registry(insecure=False),
    }
    assert locate(said, rules, "registry-1.docker.io/library/x:1") == (
        Location("m:1/proxy/library/x", False, "/m", True),
        Location("localhost:5000/library/x", False, "", False),
        Location("docker.io/library/x", False, "/hub", False),
    )
    assert locate(said, rules, "example.com/foo/x") == (
        Location("internal.example.net/bar/x", False, "", False),
    )
    # None at all, where podman has some.
    said = {"docker.io": Registry(mirrors=())}
    assert [at.name for at in locate(said, rules, "docker.io/x/y")] == ["docker.io/x/y"]
    # What it does not speak of is registries.conf's.
    said = {"docker.io": Registry(insecure=True)}
    assert [at.insecure for at in locate(said, rules, "docker.io/x/y")] == [False, False, True]


def test_drop_ins_replace_tables_with_the_same_prefix(tmp_path: Path) -> None:
    main = tmp_path / "registries.conf"
    assert registriesconf.read(str(main)) == ()
    main.write_text('[[registry]]\nprefix = "h"\nblocked = true\n[[registry]]\nlocation = "i"\n')
    directory = tmp_path / "registries.conf.d"
    directory.mkdir()
    (directory / "10.conf").write_text('[[registry]]\nlocation = "h"\ninsecure = true\n')
    (directory / "20.conf").write_text('[[registry]]\nlocation = "k"\n')
    (directory / "30.conf.bak").write_text("broken [")
    (directory / "directory.conf").mkdir()
    found = {rule.prefix: rule for rule in registriesconf.read(str(main))}
    assert list(found) == ["h", "i", "k"]
    assert (found["h"].blocked, found["h"].insecure) == (False, True)
    (directory / "40.conf").write_text("broken [")
    with pytest.raises(ConfigError, match=re.escape(f"{directory}/40.conf cannot be used")):
        registriesconf.read(str(main))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[registry]", "line 1"),
        ("registry = 5", "registry is no array of tables"),
        ("registry = [5]", "registry is no array of tables"),
        ("[[registry]]\nblocked = true", "needs a prefix or a location"),
        ('[[registry]]\nprefix = "*.x/y"', "needs a prefix or a location, not '*.x/y'"),
        ('[[registry]]\nprefix = "a.*.x"', "not 'a.*.x'"),
        ("[[registry]]\nlocation = 5", "location is no string"),
        ('[[registry]]\nlocation = "h"\nblocked = "no"', "blocked is neither true nor false"),
        ('[[registry]]\nprefix = "h"\nlocation = "https://h"', "'https://h' is not HOST[:PORT]"),
        ('[[registry]]\nlocation = "h"\nmirror = {}', "registry.mirror is no array"),
        ('[[registry]]\nlocation = "h"\n[[registry.mirror]]', "the location '' is not"),
        (
            '[[registry]]\nlocation = "h"\n[[registry.mirror]]\nlocation = "m"\n'
            'pull-from-mirror = "never"',
            "pull-from-mirror is 'never', not one of all, digest-only, tag-only",
        ),
        ("a = " + "[" * 100_000, ""),
    ],
)
def test_a_broken_file_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registriesconf.parse(text, "/etc/containers/registries.conf")
    assert str(caught.value).startswith("/etc/containers/registries.conf cannot be used: ")
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "registries.conf").mkdir()
    with pytest.raises(ConfigError, match=r"registries\.conf cannot be read"):
        registriesconf.read(str(tmp_path / "registries.conf"))
    (tmp_path / "b").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="b cannot be read"):
        registriesconf.read(str(tmp_path / "b"))
