"""libtorrent as it is used here: sessions of one process, on loopback."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

pytest.importorskip("libtorrent", reason="not installed here: the Python package libtorrent")

from hpcimg.errors import Unreachable
from hpcimg.peers.engine import Torrent, make_torrent
from hpcimg.peers.transfer import Transfer
from tests.parts.daemon import free_ports

_SIZE = 600_000
Start = Callable[..., Transfer]


@pytest.fixture
def files() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def file_of(files: ExitStack, data: bytes = b"") -> IO[bytes]:
    """Return an open file without a name."""
    file: IO[bytes] = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    file.write(data)
    file.flush()
    return file


@pytest.fixture
def transfer(files: ExitStack, tmp_path: Path) -> Start:
    """Start one on a port of its own."""

    def start(*networks: str) -> Transfer:
        made = Transfer(
            free_ports(1),
            networks=networks or ("127.0.0.0/8",),
            rate=0,
            directory=tempfile.mkdtemp(dir=tmp_path),
        )
        files.callback(made.end)
        return made

    return start


def fetched(member: Transfer, *, timeout_s: float) -> bool:
    """Wait until a member has all."""
    until = time.monotonic() + timeout_s
    while not member.received()[1]:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_an_image_goes_from_one_to_the_other(transfer: Start, files: ExitStack) -> None:
    data = os.urandom(_SIZE + 7)
    source, copy = file_of(files, data), file_of(files)
    torrent = make_torrent(source.fileno(), len(data))
    assert torrent.fits()
    one, other = transfer(), transfer()
    one.share(torrent, source.fileno(), whole=True)
    other.share(torrent, copy.fileno(), whole=False, index=1, count=2)
    other.connect("127.0.0.1", one.port)
    assert fetched(other, timeout_s=20)
    port = other.port
    other.end()
    assert os.pread(copy.fileno(), len(data) + 1, 0) == data
    other.begin_again()
    assert other.port == port


def test_wrong_pieces_are_dropped(transfer: Start, files: ExitStack) -> None:
    data = os.urandom(_SIZE)
    source, rubbish, copy = file_of(files, data), file_of(files, os.urandom(_SIZE)), file_of(files)
    torrent = make_torrent(source.fileno(), _SIZE)
    liar, honest, member = transfer(), transfer(), transfer()
    liar.share(torrent, rubbish.fileno(), whole=True)  # and it says that it has all
    member.share(torrent, copy.fileno(), whole=False)
    member.connect("127.0.0.1", liar.port)
    assert not fetched(member, timeout_s=1)
    assert member.received()[0] == 0
    honest.share(torrent, source.fileno(), whole=True)
    member.connect("127.0.0.1", honest.port)
    assert fetched(member, timeout_s=20)
    member.end()
    assert os.pread(copy.fileno(), _SIZE, 0) == data


def test_who_does_not_know_the_salt_gets_nothing(transfer: Start, files: ExitStack) -> None:
    source, copy = file_of(files, os.urandom(_SIZE)), file_of(files)
    torrent = make_torrent(source.fileno(), _SIZE)
    one, other = transfer(), transfer()
    one.share(torrent, source.fileno(), whole=True)
    other.share(torrent._replace(salt=bytes(16)), copy.fileno(), whole=False)
    other.connect("127.0.0.1", one.port)
    assert not fetched(other, timeout_s=1)
    assert other.received()[0] == 0


def test_who_is_in_no_network_of_the_site_is_no_peer(transfer: Start, files: ExitStack) -> None:
    source, copy = file_of(files, os.urandom(_SIZE)), file_of(files)
    torrent = make_torrent(source.fileno(), _SIZE)
    one, other = transfer("10.0.0.0/8"), transfer()
    one.share(torrent, source.fileno(), whole=True)
    other.share(torrent, copy.fileno(), whole=False)
    other.connect("127.0.0.1", one.port)
    assert not fetched(other, timeout_s=1)


def test_ports_that_are_taken(transfer: Start, tmp_path: Path) -> None:
    one = transfer()
    with pytest.raises(Unreachable, match="no port is free"):
        Transfer([one.port], networks=(), rate=0, directory=str(tmp_path)).end()


@pytest.mark.parametrize(
    "torrent",
    [
        Torrent(100, 16384, b"x" * 40, b""), Torrent(0, 16384, b"", b""), Torrent(5, 0, b"x", b""),
        Torrent(-1, 16384, b"", b""), Torrent(1 << 20, 16384, b"x" * 20, b""),
    ],
)  # fmt: skip
def test_what_is_no_torrent(torrent: Torrent) -> None:
    assert not torrent.fits()
