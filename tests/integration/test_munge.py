"""Credentials of the real munged."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcimg.errors import Unreachable
from hpcimg.peers.libmunge import Munge
from tests.parts import munge as parts

pytestmark = pytest.mark.skipif(bool(parts.Munge.missing()), reason=parts.Munge.missing() or "-")


@pytest.fixture(scope="module")
def munged() -> Iterator[Path]:
    """The socket of a munged."""
    with tempfile.TemporaryDirectory(prefix="munge-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with parts.Munge(Path(directory)) as made:
            yield made.socket


def of_user(socket: Path, *options: str, command: str = "munge", text: str = "x") -> str:
    """Run munge or unmunge as a user; return what it said."""
    argv = ["setpriv", "--reuid=65534", "--clear-groups", command, f"--socket={socket}", *options]
    done = subprocess.run(argv, input=text, text=True, capture_output=True, check=False)
    return done.stdout.strip() or done.stderr


def test_what_root_says_is_read_once_and_by_root_alone(munged: Path) -> None:
    munge = Munge(str(munged))
    credential = munge.encode(b"payload \0 of root")
    assert "Unauthorized" in of_user(munged, command="unmunge", text=credential)
    assert munge.decode(credential) == b"payload \0 of root"
    assert munge.decode(credential) is None


@pytest.mark.parametrize("options", [(), ("--restrict-uid=0",)])
def test_what_a_user_says_is_not_read(munged: Path, options: tuple[str, ...]) -> None:
    assert Munge(str(munged)).decode(of_user(munged, *options)) is None


@pytest.mark.parametrize(
    "text", ["", "nothing", "MUNGE:nothing:", "MUNGE:AwQ=:", "\x00", "x" * 9999]
)
def test_nonsense_is_not_read_and_does_not_change_what_is_made_next(
    munged: Path, text: str
) -> None:
    munge = Munge(str(munged))
    assert munge.decode(text) is None
    credential = munge.encode(b"1")
    assert "Unauthorized" in of_user(munged, command="unmunge", text=credential)
    assert munge.decode(credential) == b"1"


def test_a_munged_that_is_not_there() -> None:
    with pytest.raises(Unreachable, match="munged does not answer"):
        Munge("/nonexistent").encode(b"1")
