"""A user's own credentials files and helpers."""

from __future__ import annotations

import json
import os
import pwd
import time
from pathlib import Path

import pytest

from hpcimg.sources.oci import logins
from hpcimg.sources.oci.credentials import Login
from tests.parts.registryclient import auth_file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home that our account seems to have; $HOME points elsewhere."""
    account = pwd.getpwuid(os.geteuid())
    fields = [*account][:5] + [str(tmp_path), account.pw_shell]
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(fields))
    monkeypatch.setenv("HOME", "/nonexistent")
    elsewhere = str(tmp_path / "run-{uid}.json")
    monkeypatch.setattr(logins, "FILES", (elsewhere, *logins.FILES[1:]))
    return tmp_path


def keep(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def of_user(host: str = "h") -> Login | None:
    return logins.of_user(host, "lab/x")


def test_the_files_in_their_order(home: Path) -> None:
    assert of_user() is None
    keep(home / ".config/enroot/.credentials", "machine h login enroot password x")
    expected = [f"run-{os.geteuid()}.json"]
    expected += [str(Path(name).relative_to("~")) for name in logins.FILES[1:]]
    for path in reversed(expected):
        login = of_user()
        assert login
        keep(home / path, auth_file("h", username=path, password="x"))
        login = of_user()
        assert login
        assert login.username == path
        assert login.source.endswith(path)


def test_enroots_hosts_have_no_port(home: Path) -> None:
    keep(home / ".config/enroot/.credentials", "machine h login jo password x")
    assert of_user("h:5000")
    keep(home / ".config/enroot/.credentials", "machine h:5000 login jo password x")
    assert of_user("h:5000")
    assert of_user("h") is None


def test_who_has_no_account_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 3_999_999_999)
    assert of_user() is None


def test_a_hostile_file_is_passed_over_at_once(home: Path) -> None:
    files = [home / name.removeprefix("~/") for name in logins.FILES[1:]]
    for file in files:
        file.parent.mkdir(exist_ok=True, parents=True)
    os.mkfifo(files[0])
    with files[1].open("wb") as big:
        big.truncate(1 << 40)
    files[2].symlink_to("/dev/zero")
    files[3].write_bytes(b"\xff\xfe")
    (home / ".config/enroot").mkdir(parents=True)
    keep(home / ".config/enroot/.credentials", "machine h login jo password x")
    began = time.monotonic()
    assert of_user()
    assert time.monotonic() - began < 10


# Helpers


@pytest.fixture
def programs(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of credential helpers."""
    directory = home / "bin"
    directory.mkdir()
    monkeypatch.setattr(logins, "_HELPER_PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.setattr(logins, "_HELPER_TIMEOUT_S", 0.5)
    return directory


def helper(directory: Path, name: str, script: str) -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


GOOD = (
    """[ "$1" = get ] && read -r host; printf '{"Username":"%s","Secret":"%s"}' "$host" "$HOME" """
)


def test_a_helper_for_the_host_goes_before_the_file_and_the_file_before_the_store(
    home: Path, programs: Path
) -> None:
    helper(programs, "one", GOOD)
    helper(programs, "all", GOOD)
    content = json.loads(auth_file("h", username="file", password="x"))
    content |= {"credHelpers": {"with-helper:5000": "one"}, "credsStore": "all"}
    keep(home / ".docker/config.json", json.dumps(content))
    login = of_user("with-helper:5000")
    assert login == Login("with-helper:5000", str(home), source="docker-credential-one")
    login = of_user("h")
    assert login
    assert login.username == "file"
    login = of_user("docker.io")
    assert login
    assert login.username == "https://index.docker.io/v1/"
    assert login.source == "docker-credential-all"


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "echo credentials not found; exit 1",
        "exec sleep 60",
        # It leaves somebody behind who has its output open.
        "sleep 60 & exit 0",
        "exec cat /dev/zero",
        "printf '\\377'",
        """printf '{"Username":"a","Secret":"b"}'; head -c 100000 /dev/zero | tr '\\0' ' '""",
        "exec <&-; printf '{}'",
    ],
)
def test_a_helper_that_fails_is_passed_over(home: Path, programs: Path, script: str) -> None:
    helper(programs, "bad", script)
    keep(home / ".docker/config.json", '{"credsStore": "bad"}')
    keep(home / ".config/enroot/.credentials", "machine h login jo password x")
    began = time.monotonic()
    login = of_user()
    assert login
    assert login.username == "jo"
    assert time.monotonic() - began < 30


def test_a_helper_that_is_not_installed(home: Path) -> None:
    keep(home / ".docker/config.json", '{"credsStore": "no-such-helper"}')
    assert of_user() is None


def test_a_helper_of_the_sites_file_is_not_run(home: Path, programs: Path) -> None:
    helper(programs, "one", f"touch {home}/ran")
    text = '{"credHelpers": {"h": "one"}, "credsStore": "one"}'
    assert logins.in_text(text, "h", "x") is None
    assert not (home / "ran").exists()


def test_a_helper_does_not_get_the_login_of_the_proxy(
    home: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://site:s3cr@t@proxy.example.org:3128")
    monkeypatch.setenv("HTTP_PROXY", "site:s3cret@proxy.example.org:3128")
    monkeypatch.setenv("no_proxy", "a@b.example.org")
    helper(programs, "tell", f"env > {home}/environment")
    keep(home / ".docker/config.json", '{"credsStore": "tell"}')
    assert of_user("h") is None
    given = (home / "environment").read_text()
    assert "https_proxy=http://proxy.example.org:3128\n" in given
    assert "HTTP_PROXY=proxy.example.org:3128\n" in given
    assert "s3cr" not in given
