"""How Apptainer is called to check signatures, with a stand-in; and which parts have none."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from hpcimg import programs
from hpcimg.errors import MissingTool, NodeError, NotAllowed
from hpcimg.image import formats
from hpcimg.image.verify import Work, check_ready, verify
from tests.parts import images

pytestmark = pytest.mark.skipif(bool(images.missing()), reason=images.missing() or "-")
KEYS = b"\xc6keys"  # begins as a packet of OpenPGP does
STAND_IN = """#!/bin/sh
{ echo "$@"; echo "$APPTAINER_KEYSDIR"; cat "$APPTAINER_KEYSDIR/pgp-public" 2>&1; } >"$HOME/said"
cmp -s "$4" %(image)s || exit 2
[ -e "$HOME/keys/pgp-public" ] && exit 0
echo "FATAL:   signature object 2 not valid: unknown entity" >&2
exit 255
"""


class Place:
    """A SIF, a keyring, and a runtime that says what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.image = images.make_sif(directory / "x.sif", {"hello": b"x"})
        self.keyring = directory / "pgp-public"
        self.keyring.write_bytes(KEYS)
        self.program = directory / "apptainer"
        self.program.write_text(STAND_IN % {"image": self.image})
        self.program.chmod(0o755)
        self.work = directory / "work"
        self.work.mkdir()

    def verify(self, keyring: str | None = None) -> None:
        file = os.open(self.image, os.O_RDONLY)
        try:
            given = str(self.keyring) if keyring is None else keyring
            verify(Work("https://h/x.sif", "sif", given, file, "", str(self.work)))
        finally:
            os.close(file)

    def change_group(self, number: int, group: int) -> None:
        """Change the group of a part."""
        data = bytearray(self.image.read_bytes())
        offset = formats.SIF_HEADER.unpack_from(data)[9]
        struct.pack_into("<I", data, offset + number * formats.SIF_DESCRIPTOR.size + 9, group)
        self.image.write_bytes(data)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.setattr(programs, "find", lambda *_: str(made.program))
    return made


def test_only_keys_of_the_site_count(place: Place) -> None:
    place.verify()
    arguments, keys, content = (place.work / "said").read_bytes().splitlines()
    assert arguments.split()[:3] == [b"--silent", b"verify", b"--local"]
    assert (keys, content) == (f"{place.work}/keys".encode(), KEYS)
    copy = (place.work / "keys" / "pgp-public").stat()
    assert (copy.st_uid, stat.S_IMODE(copy.st_mode)) == (os.geteuid(), 0o600)


def test_who_signed_is_not_known(place: Place) -> None:
    with pytest.raises(NotAllowed, match=r"apptainer says: FATAL: signature object 2 not valid"):
        place.verify(keyring="")


def test_a_keyring_that_cannot_be_read(place: Place) -> None:
    with pytest.raises(NodeError, match=r"keyring cannot be read.*pgp-private"):
        place.verify(keyring=f"{place.keyring.parent}/pgp-private")


def test_what_is_ready_to_verify(place: Place) -> None:
    for keyring in ("", str(place.keyring)):
        check_ready("sif", keyring)
    check_ready(str(place.program), "")
    with pytest.raises(NodeError, match="keyring cannot be read"):
        check_ready("sif", f"{place.keyring}.not")
    with pytest.raises(NodeError, match="cannot say whether"):
        check_ready(str(place.work), "")


def test_a_keyring_that_is_a_key_as_text(place: Place) -> None:
    place.keyring.write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    with pytest.raises(NodeError, match="keyring is not a keyring: it is text"):
        place.verify()


@pytest.mark.parametrize("group", [0, 0xF0000000])
def test_a_part_that_is_in_no_group(place: Place, group: int) -> None:
    place.change_group(0, group)
    with pytest.raises(NotAllowed, match="no signed group"):
        place.verify()


def test_what_is_no_sif(place: Place) -> None:
    place.image.write_bytes(b"hsqs" + b"\0" * 4096)
    with pytest.raises(NotAllowed, match="not a SIF file"):
        place.verify()


def test_no_runtime(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find", lambda *_: "")
    with pytest.raises(MissingTool):
        place.verify()
