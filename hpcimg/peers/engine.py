"""The swarm: the only module that loads libtorrent.

A torrent is made of an image's pieces and a salt that only members know. There is no tracker, no
DHT and no discovery: members connect only to the addresses that they are given.
"""

from __future__ import annotations

import datetime  # noqa: F401  # libtorrent imports it when it is too late to read a file
import hashlib
import ipaddress
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import libtorrent

from hpcimg.errors import Bug, Unreachable
from hpcimg.peers import order

_NAME = "image"
_CONNECTIONS = 24
_OWN, _OTHERS = 7, 4  # priorities of pieces
_TICK_MS = 100  # with a torrent; until then, its own slower one is enough
_SETTINGS = {
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "announce_to_all_trackers": False,
    "alert_mask": 0,
    "max_retry_port_bind": 0,  # we choose the ports
    # Members trust each other and have similar links, but do not queue much at a slow one.
    "whole_pieces_threshold": 0,
    "auto_sequential": False,
    # The second limits what others may request from this member at once; they are told.
    "max_out_request_queue": 4,
    "max_allowed_in_request_queue": 4,
    "connections_limit": _CONNECTIONS,
    "connection_speed": 200,
    "smooth_connects": False,
    "min_reconnect_time": 1,
    "peer_connect_timeout": 5,
    "allow_multiple_connections_per_ip": True,
    "unchoke_slots_limit": -1,
    "user_agent": "",
}


class Torrent(NamedTuple):
    """An image as a torrent: `pieces` are the SHA-1 digests of its pieces."""

    size_bytes: int
    piece_length: int
    pieces: bytes
    salt: bytes

    def fits(self) -> bool:
        """Tell whether there is one digest for each piece."""
        length = self.piece_length
        count = -(-self.size_bytes // length) if length >= 1024 else -1
        return self.size_bytes > 0 and len(self.pieces) == 20 * count

    def info(self) -> dict[bytes, bytes | int]:
        """Return the info dictionary of the torrent file."""
        return {
            b"length": self.size_bytes,
            b"name": _NAME.encode(),
            b"piece length": self.piece_length,
            b"pieces": self.pieces,
            b"private": 1,
            b"salt": self.salt,
        }

    def name(self) -> str:
        """Return the info hash in hexadecimal, which covers all the piece digests."""
        return hashlib.sha256(_bencoded(self.info())).hexdigest()


def make_torrent(descriptor: int, size_bytes: int) -> Torrent:
    """Read an image and return it as a torrent. Raises OSError."""
    length, pieces, position = order.piece_length(size_bytes), bytearray(), 0
    while position < size_bytes:
        data = os.pread(descriptor, min(length, size_bytes - position), position)
        if not data:
            raise OSError("the image is shorter than it was")
        while len(data) < min(length, size_bytes - position):
            more = os.pread(descriptor, length - len(data), position + len(data))
            if not more:
                raise OSError("the image is shorter than it was")
            data += more
        pieces += hashlib.sha1(data, usedforsecurity=False).digest()
        position += len(data)
    return Torrent(size_bytes, length, bytes(pieces), os.urandom(16))


class Engine:
    """One libtorrent session with at most one torrent. `port` is where it listens.

    Peers outside of `networks` are rejected. `rate` limits sending, in bytes per second, 0 for no
    limit. `directory` must be empty and private.
    """

    def __init__(
        self, ports: Sequence[int], *, networks: Sequence[str], rate: int, directory: str
    ) -> None:
        """Listen. Raises Unreachable if no port is free."""
        self._lt: Any = libtorrent
        self._networks = networks
        self._rate = rate
        self._link = f"{directory}/{_NAME}"
        self._directory = directory
        self._torrent: Any = None
        for port in ports:
            where = f"0.0.0.0:{port},[::]:{port}"
            self._session = self._lt.session({**_SETTINGS, "listen_interfaces": where})
            if self._session.listen_port() == port:
                self._session.set_ip_filter(self._filter())
                self.port = port
                return
        raise Unreachable(
            "no port is free for the swarm", why=f"{ports[0]} to {ports[-1]} are taken"
        )

    def share(
        self, torrent: Torrent, descriptor: int, *, whole: bool, index: int = 0, count: int = 1
    ) -> None:
        """Send an image from an open file, or fetch it into one.

        This member's pieces, by its `index` among `count`, are fetched first.
        """
        info = self._lt.torrent_info(self._lt.bencode({b"info": torrent.info()}))
        if os.path.lexists(self._link):
            os.unlink(self._link)
        os.symlink(f"/proc/self/fd/{descriptor}", self._link)
        wanted = self._lt.add_torrent_params()
        flags = self._lt.torrent_flags
        wanted.ti, wanted.save_path = info, self._directory
        wanted.flags = wanted.flags & ~flags.auto_managed & ~flags.paused
        if whole:
            wanted.flags |= flags.seed_mode
        else:
            wanted.piece_priorities = [
                _OWN if piece % count == index % count else _OTHERS
                for piece in range(info.num_pieces())
            ]
        self._session.apply_settings({"tick_interval": _TICK_MS})
        self._torrent = self._session.add_torrent(wanted)
        if self._rate:
            self._torrent.set_upload_limit(self._rate)

    def connect(self, address: str, port: int) -> None:
        """Connect to another member."""
        if self._torrent is not None:
            self._torrent.connect_peer((address, port))

    def received(self) -> tuple[int, bool]:
        """Return the number of bytes received, and whether that is all. Raises Bug, OSError."""
        status = self._torrent.status()
        if status.errc.value():
            if status.errc.category().name() in ("system", "generic"):
                raise OSError(status.errc.value(), status.errc.message())
            raise Bug("libtorrent failed", why=status.errc.message())
        return status.total_wanted_done, status.is_seeding

    def _filter(self) -> Any:
        allowed = self._lt.ip_filter()
        for refused, networks in ((1, ("0.0.0.0/0", "::/0")), (0, self._networks)):
            for network in map(ipaddress.ip_network, networks):
                allowed.add_rule(str(network[0]), str(network[-1]), refused)
        return allowed


def _bencoded(value: Any) -> bytes:
    """Return a value in bencoding (BEP 3)."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    items = b"".join(_bencoded(key) + _bencoded(value[key]) for key in sorted(value))
    return b"d%be" % items
