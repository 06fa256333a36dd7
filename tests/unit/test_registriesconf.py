"""registries.conf: tables, and its combination with hpcimg.conf."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcimg.config import registriesconf
from hpcimg.config.keys import Registry
from hpcimg.errors import ConfigError, NotAllowed
from hpcimg.site.mirrors import Location, locate
from tests.parts.daemon import PATH

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
prefix = "aa.b.example.com"
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
        ("docker.io:5000/x", ["tags.example.org:5000/x", "docker.io:5000/x"]),
        ("example.com/foo/img:1", ["internal.example.net/bar/img !"]),
        ("example.com/foo", ["internal.example.net/bar !"]),
        ("example.com/food/img", ["example.com/food/img"]),
        ("a.example.com/x", ["mirror.example.net/wild/x", "a.example.com/x"]),
        ("c.a.example.com:5000/x", ["mirror.example.net/wild/x", "c.a.example.com:5000/x"]),
        ("aa.b.example.com/x:1", ["aa.b.example.com/x"]),
        (f"aa.b.example.com/x@{DIGEST}", ["m.example.net/x", "aa.b.example.com/x"]),
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


@pytest.mark.parametrize(
    "rest", ["example.com/foo/deep/x:1", "c.b.example.com/x", "c.b.example.com:5000/x"]
)
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
        Location("m:1/proxy/library/x", False, "/m", True, mirror=True),
        Location("localhost:5000/library/x", False, "", False, mirror=True),
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
        ("registry = 5", "registry is not an array of tables"),
        ("registry = [5]", "registry is not an array of tables"),
        ("a = " + "[" * 100_000, ""),
    ],
)
def test_a_broken_file_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registriesconf.parse(text, "/etc/containers/registries.conf")
    assert str(caught.value).startswith("/etc/containers/registries.conf cannot be used: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "about", "words"),
    [
        ("blocked = true", "", "needs a prefix or a location"),
        ('prefix = "*.x/y"', "", "needs a prefix or a location, not '*.x/y'"),
        ('prefix = "a.*.x"', "", "not 'a.*.x'"),
        ("location = 5", "", "location is not a string"),
        ('prefix = 5\nlocation = "h"', "h", "prefix is not a string"),
        ('location = "h"\nblocked = "no"', "h", "blocked is neither true nor false"),
        ('prefix = "h"\nlocation = "https://h"', "h", "'https://h' is not HOST[:PORT]"),
        ('location = "h"\nmirror = {}', "h", "registry.mirror is not an array"),
        ('location = "h"\n[[registry.mirror]]', "h", "the location '' is not"),
        (
            'location = "h"\n[[registry.mirror]]\nlocation = "m"\npull-from-mirror = "never"',
            "h",
            "pull-from-mirror is 'never', not one of all, digest-only, tag-only",
        ),
    ],
)
def test_a_table_that_is_wrong_stops_what_it_is_about_alone(
    text: str, about: str, words: str
) -> None:
    text = f'[[registry]]\nprefix = "other"\nlocation = "place"\n[[registry]]\n{text}'
    rules = registriesconf.parse(text, "/etc/containers/registries.conf")
    [wrong] = [rule for rule in rules if rule.wrong]
    assert wrong.prefix == about
    assert wrong.wrong.startswith("/etc/containers/registries.conf: ")
    assert words in wrong.wrong
    assert [at.name for at in locate({}, rules, "other/x")] == ["place/x"]
    if about:
        with pytest.raises(ConfigError, match=re.escape(words)):
            locate({}, rules, f"{about}/x")


WITH_MIRRORS = """
[[registry]]
location = "h.example.org"
blocked = true
[[registry.mirror]]
location = "m.example.org/h"
[[registry.mirror]]
location = "closed.example.org"
[[registry]]
location = "closed.example.org"
blocked = true
"""
BLOCKED = f"""{WITH_MIRRORS}
[[registry]]
prefix = "moved.example.org"
location = "closed.example.org"
[[registry]]
prefix = "shut.example.org"
location = "m.example.org"
blocked = true
"""


def test_blocked_with_mirrors_means_the_mirrors_alone() -> None:
    rules = registriesconf.parse(BLOCKED, "")
    [place] = locate({}, rules, "h.example.org/x:1")
    assert place == Location("m.example.org/h/x", False, "", False, mirror=True)
    for host in ("closed", "moved", "shut"):
        with pytest.raises(NotAllowed, match=r"(closed|shut)\.example\.org is blocked"):
            locate({}, rules, f"{host}.example.org/x:1")
    # A mirror of hpcimg.conf is one, too.
    said = {"closed.example.org": Registry(mirrors=("n.example.org",))}
    assert [at.name for at in locate(said, rules, "closed.example.org/x")] == ["n.example.org/x"]


def test_of_two_tables_the_longer_then_the_first_counts(tmp_path: Path) -> None:
    main = tmp_path / "registries.conf"
    tables = {"b.test": "exact", "*.test": "wild", "*.a.test": "longer"}
    text = "".join(
        f'[[registry]]\nprefix = "{prefix}"\nlocation = "{location}"\n'
        for prefix, location in [*tables.items(), ("b.test", "second"), ("*.test", "second")]
    )
    main.write_text(text)
    rules = registriesconf.read(str(main))
    found = [locate({}, rules, f"{h}/x")[0].name for h in ("b.test", "a.test", "c.a.test:5000")]
    assert found == ["wild/x", "wild/x", "longer:5000/x"]


FOR_SKOPEO = f"""{WITH_MIRRORS}
[[registry]]
prefix = "b.test"
location = "exact.test"
[[registry.mirror]]
location = "m.test"
pull-from-mirror = "digest-only"
[[registry]]
prefix = "*.test"
location = "wild.example.org"
[[registry.mirror]]
location = "w.example.org"
"""
SKOPEO = shutil.which("skopeo")


@pytest.mark.skipif(SKOPEO is None, reason="skopeo is not installed")
@pytest.mark.parametrize(
    "name", ["h.example.org/x:1", "b.test/x:1", "cc.b.test/x:1", f"b.test/x@{DIGEST}"]
)
def test_skopeo_looks_in_the_same_places(tmp_path: Path, name: str) -> None:
    (tmp_path / "registries.conf").write_text(FOR_SKOPEO)
    argv = ["unshare", "--user", "--net", "skopeo", "--debug"]
    argv += ["--registries-conf", str(tmp_path / "registries.conf")]
    argv += ["inspect", "--raw", f"docker://{name}"]
    done = subprocess.run(
        argv, capture_output=True, text=True, env={"PATH": PATH, "HOME": str(tmp_path)}, check=False
    )
    tried = re.findall(r'Trying to access \\"(.*?)\\"', done.stderr)
    version = name.partition("/x")[2]
    found = [f"{at.name}{version}" for at in locate({}, registriesconf.parse(FOR_SKOPEO, ""), name)]
    blocked = set(re.findall(r"([^ \"]+): registry \S+ is blocked", done.stderr))
    blocked |= set(re.findall(r'Accessing \\"(\S+)\\" failed: registry \S+ is bl', done.stderr))
    assert tried, done.stderr
    assert found == [place for place in tried if place not in blocked]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "registries.conf").mkdir()
    with pytest.raises(ConfigError, match=r"registries\.conf cannot be read"):
        registriesconf.read(str(tmp_path / "registries.conf"))
    (tmp_path / "b").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="b cannot be read"):
        registriesconf.read(str(tmp_path / "b"))
