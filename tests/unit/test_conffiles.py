"""The configuration as text: it yields what configparser reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcimg.config import files as conffiles
from hpcimg.config import load as config
from hpcimg.errors import ConfigError

HEADS = st.sampled_from(
    ["[state]", "[cache]", "[alias]", " [alias]", "[state]\t", "[state]\N{NO-BREAK SPACE}"]
)
LINES = st.sampled_from(
    [
        "", "# path = /no", "; path = /no", "path = /a", "path=/b", "path =\t/c \t", " path = /d",
        "path = /e\r", "path = /f\x0b", "path = /g\N{NO-BREAK SPACE}", "path\x0b= /h", "path = ",
        "path", "\tmore", "x = y", "path = /i = j", "x = \x0cpath = /k", "path x = /l", "path: /m",
        "x = 1\rpath = /n", "path = /o\x85", "path = /q\N{EM SPACE}", "\x0cpath = /p", "[", "=",
    ]
)  # fmt: skip
SECTIONS = st.tuples(HEADS, st.lists(LINES, max_size=2)).map(lambda s: "\n".join([s[0], *s[1]]))
TEXTS = st.lists(SECTIONS, max_size=3).map("\n".join)


@settings(max_examples=500)
@given(TEXTS)
@example("[state]\n [alias]\npath = /x")
@example("[state]\n# \x0cpath = /x")
@example("[state]\n# \rpath = /x")
def test_says_what_configparser_says_or_the_file_is_refused(text: str) -> None:
    files = [("file", text)]
    try:
        [(_, parser)] = config._parse(files)
        config._collect(files)
    except ConfigError:
        return
    for section in ("cache", "state"):
        found = parser.get(section, "path", fallback="")
        assert conffiles.raw_value(files, section, "path") == found


def test_the_last_file_counts() -> None:
    files = [("a", "[state]\npath = /a"), ("b", "[cache]\npath = /b"), ("c", "[state]\npath=/c")]
    assert conffiles.raw_value(files, "state", "path") == "/c"
    assert conffiles.raw_value(files, "cache", "path") == "/b"
    assert conffiles.raw_value(files, "log", "to") == ""
    # A section ends with its file.
    assert conffiles.raw_value([("a", "[state]"), ("b", "path = /b")], "state", "path") == ""


def test_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n%n.x")
    assert conffiles.directories([]) == ("/var/cache/hpcimg", "/run/hpcimg")
    files = [("a", "[state]\npath = /%n/%n\n[cache]\npath = relative")]
    assert conffiles.directories(files) == ("/var/cache/hpcimg", "/n%n.x/n%n.x")


def test_node_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert conffiles.node_name() == "n1"
    monkeypatch.delenv("SLURMD_NODENAME")
    host = Path("/proc/sys/kernel/hostname").read_text().strip()
    assert conffiles.node_name() == host.split(".")[0]


def test_fingerprint_changes_with_every_change(tmp_path: Path) -> None:
    main, other = tmp_path / "hpcimg.conf", tmp_path / "conf.d" / "x.conf"
    other.parent.mkdir()
    seen = set()

    def look() -> str:
        found = conffiles.fingerprint(conffiles.read_files(str(main)))
        assert found.isprintable()
        assert found == conffiles.fingerprint(conffiles.read_files(str(main)))
        seen.add(found)
        return found

    main.write_text("[cache]\n")
    first = look()
    main.write_text("[cache]\n#")
    look()
    main.write_bytes(b"[cache]\n\xff")
    look()
    other.write_text("[cache]\n")
    look()
    other.rename(other.with_name("y.conf"))
    look()
    assert len(seen) == 5
    main.write_text("[cache]\n")
    (tmp_path / "conf.d" / "y.conf").unlink()
    assert look() == first


def test_what_cannot_be_read(tmp_path: Path) -> None:
    main, directory = tmp_path / "hpcimg.conf", tmp_path / "conf.d"
    (directory / "a.conf").mkdir(parents=True)
    (directory / "b.conf").write_text("b")
    with pytest.raises(FileNotFoundError):
        conffiles.read_files(str(main))
    main.write_text("main")
    with pytest.raises(IsADirectoryError):
        conffiles.read_files(str(main))
    expected = [(str(main), "main"), (str(directory / "b.conf"), "b")]
    assert conffiles.read_what_can_be(str(main)) == expected


def test_conf_d_that_is_no_directory_is_none(tmp_path: Path) -> None:
    main = tmp_path / "hpcimg.conf"
    main.write_text("main")
    (tmp_path / "conf.d").touch()
    assert conffiles.read_files(str(main)) == [(str(main), "main")]
