"""The configuration: defaults, files, and errors that name file, section and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcimg.config import keys
from hpcimg.config import load as config
from hpcimg.config.keys import Registry
from hpcimg.config.values import Size
from hpcimg.errors import ConfigError


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The main file, empty, named by HPCIMG_CONF; conf.d beside it is empty too."""
    path = tmp_path / "hpcimg.conf"
    path.touch()
    (tmp_path / "conf.d").mkdir()
    monkeypatch.setenv("HPCIMG_CONF", str(path))
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    return path


def refused(main: Path, text: str) -> str:
    """Return the message about an invalid configuration."""
    main.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert caught.value.exit_code == 31
    return str(caught.value)


def test_an_empty_file_is_a_working_node(main: Path) -> None:
    loaded = config.load()
    assert loaded.cache_path == "/var/cache/hpcimg"
    assert loaded.state_path == "/run/hpcimg"
    assert loaded.max_size == Size(percent=80)
    assert (loaded.high_watermark, loaded.low_watermark) == (90, 80)
    assert loaded.min_free == Size(percent=5)
    assert loaded.min_age_s == 120
    assert (loaded.deadline_s, loaded.tag_ttl_s) == (540, 3600)
    assert (loaded.connect_timeout_s, loaded.stall_timeout_s) == (10, 60)
    assert (loaded.allow, loaded.deny, loaded.max_image_size) == (("*",), (), 0)
    assert loaded.error_ttl_s == 60
    assert (loaded.on_transient, loaded.max_requeues) == ("fail", 3)
    assert loaded.on_node_fault == "fail"
    assert (loaded.log_to, loaded.account) == ("syslog", "")
    assert (loaded.format, loaded.compression) == ("auto", "zstd:1")
    assert loaded.slurm_bin == ""
    assert (loaded.registries, loaded.aliases) == ({}, {})
    assert loaded.registry("anywhere:5000") == Registry(insecure=None, mirrors=None)


def test_values(main: Path) -> None:
    main.write_text(
        "[cache]\npath = /scratch/%n/hpcimg\nmax_size=1.5T\nmin_free = 50%\n"
        "[stage]\ndeadline = 9m\ntag_ttl = 0\n"
        "[policy]\nallow = oras://*, https://images.example/*\n  /data/*\nmax_image_size = 20G\n"
        "[registry localhost:5000]\ninsecure = yes\nmirrors = m:5000/a-b/c, [::1]:5000\n  n\n"
        "[registry h]\nauth_file = /etc/hpcimg/h.json\nshared = yes\nmirrors =\n"
        "[alias]\nBwa = oras://h/bwa:1\ngenomics/* = oras://h/*\n"
    )
    loaded = config.load()
    assert loaded.cache_path == "/scratch/n7/hpcimg"
    assert loaded.max_size == Size(size_bytes=3 * 2**39)
    assert loaded.min_free.of(1000) == 500
    assert loaded.max_size.of(1000) == 3 * 2**39
    assert (loaded.deadline_s, loaded.tag_ttl_s) == (540, 0)
    assert loaded.allow == ("oras://*", "https://images.example/*", "/data/*")
    assert loaded.max_image_size == 20 * 2**30
    assert loaded.registry("localhost:5000").insecure
    assert not loaded.registry("localhost").insecure
    assert loaded.registry("localhost:5000").mirrors == ("m:5000/a-b/c", "[::1]:5000", "n")
    assert loaded.registry("h") == Registry(auth_file="/etc/hpcimg/h.json", shared=True, mirrors=())
    assert loaded.aliases == {"Bwa": "oras://h/bwa:1", "genomics/*": "oras://h/*"}


@pytest.mark.parametrize(
    ("written", "host"),
    [("H.:05000", "h:5000"), ("[0:0::1]:5", "[::1]:5"), ("Index.Docker.io:443", "docker.io")],
)
def test_a_registry_is_the_same_in_any_spelling(main: Path, written: str, host: str) -> None:
    main.write_text(f"[registry {written}]\ninsecure = yes\n")
    assert config.load().registry(host).insecure


def test_a_percentage_of_zero_and_a_size_of_zero_are_nothing() -> None:
    assert Size(percent=0).of(1000) == Size(size_bytes=0).of(1000) == 0


def test_conf_d_goes_on_in_order_of_names(main: Path) -> None:
    main.write_text("[stage]\ntag_ttl = 1\ndeadline = 1\n[cache]\npath = /a\n")
    for name, text in {
        "20-b.conf": "[stage]\ntag_ttl = 3\n[alias]\nx = /b.sif\ny = /y.sif\n",
        "10-a.conf": "[stage]\ntag_ttl = 2\ndeadline = 2\n[alias]\nx = /a.sif\n",
        "B.conf": "[cache]\npath = /b\n",
        "a.conf": "[cache]\npath = /c\n",  # bytes decide, not a language: a comes after B
        "30-c.conf.rpmsave": "[stage]\ntag_ttl = 4\n",
        ".hidden.conf": "[stage]\ntag_ttl = 5\n",
    }.items():
        (main.parent / "conf.d" / name).write_text(text)
    loaded = config.load()
    assert (loaded.tag_ttl_s, loaded.deadline_s) == (3, 2)
    assert loaded.cache_path == "/c"
    assert loaded.aliases == {"x": "/b.sif", "y": "/y.sif"}


def test_settings_tell_where_they_come_from(main: Path) -> None:
    other = main.parent / "conf.d" / "site.conf"
    main.write_text("[stage]\ntag_ttl = 1\ndeadline = 8m\n[registry h:1]\ninsecure = yes\n")
    other.write_text("[stage]\ntag_ttl = 2h\n[alias]\nx = /x.sif\n")
    listed = {(s.section, s.name): s for s in config.settings()}
    assert listed["stage", "tag_ttl"][2:4] == ("2h", str(other))
    assert listed["stage", "deadline"][2:4] == ("8m", str(main))
    assert listed["cache", "max_size"][2:4] == ("80%", "default")
    assert listed["registry h:1", "insecure"][2:4] == ("yes", str(main))
    assert listed["alias", "x"][2:4] == ("/x.sif", str(other))
    assert all(key.about for key in keys.KEYS)


# What is wrong


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("[cache]\nmax_sizes = 1G\n", "unknown key 'max_sizes' in [cache]", "max_size"),
        ("[cache]\nMax_size = 1G\n", "unknown key 'Max_size' in [cache]", "max_size"),
        ("[caches]\npath = /x\n", "unknown section [caches]", "[cache]"),
        ("[caches]\n", "unknown section [caches]", "[registry HOST]"),
        ("[registry h]\nsecure = no\n", "unknown key 'secure' in [registry h]", "insecure"),
        ("[cache]\nmax_size = much\n", "[cache] max_size", "write 500M"),
        ("[cache]\nhigh_watermark = 9\n", "[cache] high_watermark", "write 80%"),
        ("[cache]\nmax_size = 101%\n", "[cache] max_size", "write 80%"),
        ("[stage]\ndeadline = soon\n", "[stage] deadline", "write 90s"),
        ("[stage]\nformat = img\n", "[stage] format", "auto, sif, squashfs"),
        ("[stage]\ncompression = lzma\n", "[stage] compression", "write lz4"),
        ("[stage]\ncompression = xz:1\n", "[stage] compression", "zstd:22"),
        ("[stage]\ncompression = gzip:10\n", "[stage] compression", "gzip:9"),
        ("[stage]\ncompression = zstd:\n", "[stage] compression", "zstd:1"),
        ("[policy]\non_transient = wait\n", "[policy] on_transient", "fail, requeue"),
        ("[policy]\non_node_fault = halt\n", "[policy] on_node_fault", "fail, drain"),
        ("[policy]\nmax_requeues = -1\n", "[policy] max_requeues", "'-1' is not a number"),
        ("[slurm]\ncomment = query\n", "unknown key 'comment' in [slurm]", "bin"),
        ("[log]\nto = hpcimg.log\n", "[log] to", "absolute path"),
        ("[static docker]\n", "[static docker] cannot be a scheme", "it is one already"),
        ("[static Pages]\nurl = https://h\n", "[static Pages] cannot be", "lower-case letters"),
        ("[registry https://h]\n", "[registry https://h] names no registry", "//h is not a port"),
        ("[registry h/a]\n", "[registry h/a] names no registry", "h/a is not a host name"),
        ("[registry h]\nmirrors = https://m", "[registry h] mirrors", "write HOST[:PORT]"),
        ("[registry h]\nauth_file = h.json", "[registry h] auth_file", "absolute path"),
        ("[stage]\nregistries_conf = x", "[stage] registries_conf", "absolute path"),
        ("[registry h]\ninsecure = perhaps\n", "[registry h] insecure", "neither yes nor no"),
        ("[cache]\npath = cache\n", "[cache] path", "absolute path"),
        ("[cache]\npath =\n", "[cache] path", "absolute path"),
        ("[cache]\npath = /my cache\n", "[cache] path", "without spaces"),
        ("[cache]\npath = /a:b\n", "[cache] path", "colons"),
        ("[cache]\npath = /a\x1b\n", "[cache] path", "absolute path"),
        ("[cache]\npath = /a/../b\n", "[cache] path", "write /b"),
        ("[cache]\npath = /a/\n", "[cache] path", "write /a."),
    ],
)
def test_says_file_section_key_and_what_would_be_right(
    main: Path, text: str, where: str, hint: str
) -> None:
    message = refused(main, text)
    assert message.startswith(f"{main}: {where}")
    assert hint in message
    assert message.isprintable()


@pytest.mark.parametrize("text", ["lz4", "xz", "gzip", "gzip:9", "zstd", "zstd:1", "zstd:22"])
def test_compressions(main: Path, text: str) -> None:
    main.write_text(f"[stage]\ncompression = {text}\n")
    assert config.load().compression == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path = /x\n", ["no section headers"]),
        ("[cache]\npath\n", ["path"]),
        ("[cache]\npath = /a\npath = /b\n", ["option 'path'", "section 'cache'", "line  3"]),
        ("[cache]\n[cache]\n", ["section 'cache'", "line  2"]),
        ("[cache\npath = /x\n", ["no section headers"]),
    ],
)
def test_says_where_the_syntax_is_wrong(main: Path, text: str, words: list[str]) -> None:
    message = refused(main, text)
    for word in [*words, str(main)]:
        assert " ".join(word.split()) in message


@pytest.mark.parametrize(
    "text",
    [
        "[state]\n  path = /x\n",
        "[state]\npath = /x\n  /y\n",
        "[state] # ours\npath = /x\n",
        "[state]\npath = /x\N{NO-BREAK SPACE}\n",
        "[state]\n [cache]\npath = /x\n",
        # The task prolog would find a path here where configparser finds none.
        "[state]\n [alias]\npath = /x\n",
    ],
)
def test_what_shell_and_python_would_read_differently_is_refused(main: Path, text: str) -> None:
    message = refused(main, text)
    assert message.startswith(f"{main}: [")
    assert "path: write the key at the start of a line" in message


def test_low_above_high(main: Path) -> None:
    message = refused(main, "[cache]\nlow_watermark = 95%\n")
    assert "[cache] low_watermark is above high_watermark" in message


def test_wrong_in_conf_d_is_said_of_that_file(main: Path) -> None:
    other = main.parent / "conf.d" / "x.conf"
    other.write_text("[stage]\nttl = 5\n")
    assert f"{other}: unknown key 'ttl' in [stage]" in refused(main, "")


def test_a_file_that_hpcimg_conf_names_has_to_be_there(main: Path) -> None:
    main.unlink()
    with pytest.raises(ConfigError, match=f"{main} cannot be read: No such file.*HPCIMG_CONF"):
        config.load()


def test_a_default_file_that_is_missing_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = str(tmp_path / "etc" / "hpcimg.conf")
    monkeypatch.delenv("HPCIMG_CONF")
    monkeypatch.setattr("hpcimg.config.files.DEFAULT_FILE", absent)
    assert config.load().cache_path == "/var/cache/hpcimg"


def test_a_directory_for_a_file(main: Path) -> None:
    (main.parent / "conf.d" / "x.conf").mkdir()
    assert "x.conf cannot be read: Is a directory" in refused(main, "")
