"""Connections of an HTTP session, restricted to allowed addresses.

The address that is checked is the one that is connected to: a name may resolve to another one a
moment later, and a redirect may lead anywhere.
"""

from __future__ import annotations

import functools
import http.client
import socket
import ssl
import threading
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.utils import select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.util.ssl_ import create_urllib3_context

from hpcimg.errors import NotAllowed
from hpcimg.http.addresses import Reach
from hpcimg.http.urls import to_the_letter

_INTERIM_MAX = 32
_written = threading.local()  # the target of each thread's request, exactly as written


class Adapter(requests.adapters.HTTPAdapter):
    """An adapter for requests that connects only where `reach` allows it.

    A proxy is configured by the site and resolves names itself: then only what is written in a URL
    can be checked.
    """

    def __init__(
        self, reach: Reach, *, connections_kept: int, context: ssl.SSLContext | None = None
    ) -> None:
        self.reach = reach
        self._context = context
        super().__init__(pool_maxsize=connections_kept)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        if self._context:
            kwargs["ssl_context"] = self._context
        super().init_poolmanager(*args, **kwargs)
        # Proxies have a pool manager of their own.
        self.poolmanager.pool_classes_by_scheme = _pools(self.reach)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        if self._context:
            kwargs["ssl_context"] = self._context
        return super().proxy_manager_for(proxy, **kwargs)

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, *, proxies: Any = None, **kwargs: Any
    ) -> requests.Response:
        if select_proxy(request.url or "", proxies):
            _check_written(self.reach, request.url or "")
        _written.target = request.path_url
        return super().send(request, proxies=proxies, **kwargs)


class _Response(http.client.HTTPResponse):
    """A response after any interim ones, such as 103 Early Hints (RFC 9110, section 15.2).

    Python itself skips only 100.
    """

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_INTERIM_MAX):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status // 100 != 1 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("too many interim responses")


class _Checked(HTTPConnection):
    reach: Reach
    response_class = _Response

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        # urllib3 rewrites escapes, but a signature covers what was written.
        super().putrequest(method, to_the_letter(_written.target, url), *args, **kwargs)

    def _new_conn(self) -> socket.socket:
        host = self._dns_host
        error: Exception | None = None
        try:
            # The name is resolved once, and only the result is used.
            for address in _allowed(self.reach, self):
                self._dns_host = address
                try:
                    return super()._new_conn()
                except (NewConnectionError, ConnectTimeoutError) as failed:
                    error = failed
        finally:
            self._dns_host = host  # the certificate must be valid for it
        assert error
        raise error


class _CheckedTls(_Checked, HTTPSConnection):
    def connect(self) -> None:
        try:
            self.ssl_context = _trusting(self.ssl_context, self.ca_certs, self.ca_cert_dir)
        except OSError as error:
            raise SSLError(error) from error
        self.ca_certs = self.ca_cert_dir = None
        super().connect()


@functools.cache
def _trusting(
    context: ssl.SSLContext | None, file: str | None, directory: str | None
) -> ssl.SSLContext:
    """Return a context that trusts these authorities as well. Raises OSError.

    urllib3 reads a node's authorities anew for each connection, 30 ms of processor time.
    """
    made = context or create_urllib3_context()
    if file or directory:
        made.load_verify_locations(file, directory)
    return made


def _pools(reach: Reach) -> dict[str, type[HTTPConnectionPool]]:
    checked = {"reach": reach}
    plain = type("Plain", (_Checked,), checked)
    tls = type("Tls", (_CheckedTls,), checked)
    return {
        "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("TlsPool", (HTTPSConnectionPool,), {"ConnectionCls": tls}),
    }


def _allowed(reach: Reach, connection: HTTPConnection) -> list[str]:
    """Return the addresses to connect to, at least one. Raises NotAllowed."""
    host = connection.host
    try:
        found = socket.getaddrinfo(host.strip("[]"), connection.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise NameResolutionError(host, connection, error) from error
    except UnicodeError:
        raise LocationParseError(f"{host!r}, label empty or too long") from None
    addresses = list(dict.fromkeys(str(at[4][0]) for at in found))
    if reach.names(host, connection.port):
        return addresses
    refused = [why for address in addresses if (why := reach.why_not(address))]
    if len(refused) == len(addresses):
        raise _not_allowed(host, refused[0])
    return [address for address in addresses if not reach.why_not(address)]


def _check_written(reach: Reach, url: str) -> None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if reach.names(host, parts.port or {"http": 80}.get(parts.scheme, 443)):
        return
    if f".{host.rstrip('.')}".endswith(".localhost"):
        raise _not_allowed(host, f"{host} is the proxy's own host")
    try:  # any notation of a number, such as 127.1
        found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return
    if why := reach.why_not(str(found[0][4][0])):
        raise _not_allowed(host, why)


def _not_allowed(host: str, why: str) -> NotAllowed:
    return NotAllowed(
        f"{host} is at an address that this site does not allow",
        why=why,
        do="Administrators: [policy] allow_addresses names the non-public networks that "
        "references may reach.",
    )
