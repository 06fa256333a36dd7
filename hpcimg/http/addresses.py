"""Addresses that may be connected to: public ones, and those that the site names. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

PUBLIC, PRIVATE, LINK_LOCAL, LOOPBACK = "public", "private", "link-local", "loopback"
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291, section 2.4
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052, section 2.1
_PORTS = frozenset({80, 443})  # allowed for a name without a port

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def kind(text: str) -> str:
    """Return the kind of an address: public, private, link-local or loopback.

    What counts is where it leads: an IPv6 address that embeds an IPv4 address (mapped, NAT64, 6to4)
    is of the same kind as that one. Unspecified counts as loopback; addresses neither for one host
    nor for the Internet count as private.
    """
    address = _inner(_parse(text))
    if address.is_loopback or address.is_unspecified:
        return LOOPBACK
    if address.is_link_local:
        return LINK_LOCAL
    if address.version == 6 and (address not in _GLOBAL_UNICAST or address.teredo):
        return PRIVATE
    return PUBLIC if address.is_global and not address.is_multicast else PRIVATE


def _parse(text: str) -> Address:
    return ipaddress.ip_address(text.partition("%")[0])  # without the zone


def _inner(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


class Reach:
    """What one fetch may connect to. `networks` are the site's, as in `10.0.0.0/8`.

    `hosts` are those that the site itself names, `HOST[:PORT]`: they may have any address, but only
    at that port.
    """

    def __init__(self, networks: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._named: set[tuple[str, int]] = set()
        for host in hosts:
            self.trust(f"//{host}")

    def trust(self, url: str) -> None:
        """Treat the host of this address as named by the site."""
        try:
            parts = urlsplit(url)
            ports = {parts.port} if parts.port else _PORTS
        except ValueError:
            return
        if parts.hostname:
            self._named.update((parts.hostname, port) for port in ports)

    def names(self, host: str, port: int) -> bool:
        """Tell whether the site names this host."""
        return (host.lower().strip("[]").rstrip("."), port) in self._named

    def why_not(self, address: str) -> str:
        """Return why an address of a host not named by the site is refused, "" if it is not."""
        found = kind(address)
        plain = _parse(address)
        if found == PUBLIC or any(
            at in network for network in self._networks for at in (plain, _inner(plain))
        ):
            return ""
        return f"{address} is a {found} address"
