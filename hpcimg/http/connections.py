"""Connections to web servers, restricted to allowed addresses, and single exchanges over them.

The address that is checked is the one that is connected to: a name may resolve to another one a
moment later, and a redirect may lead anywhere.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # loaded for each name, when it may no longer be readable
import functools
import http.client
import os
import socket
import ssl
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from urllib3 import BaseHTTPResponse, PoolManager, Timeout
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

from hpcimg.errors import ConfigError, NotAllowed
from hpcimg.http import proxies
from hpcimg.http.addresses import Reach
from hpcimg.http.urls import origin, target, to_the_letter

_KEPT = 16  # connections to one server; beyond that they are closed after use, with a warning
_INTERIM_MAX = 32
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_written = threading.local()  # the target of each thread's request, exactly as written


class Response(NamedTuple):
    """The response to a request; its body is read from `raw`.

    `headers` knows names in any case. `url` is where it came from, and `sent` are the headers of
    that request.
    """

    status: int
    headers: Mapping[str, str]
    url: str
    sent: Mapping[str, str]
    raw: BaseHTTPResponse


class Connections:
    """Connections that lead only where `reach` allows; several threads may use them.

    A proxy is configured by the site and resolves names itself: then only what is written in a URL
    can be checked. Servers are verified against the certificate authorities that the node trusts,
    including a site's own, and those of `context`, which may have a client certificate.
    """

    def __init__(self, reach: Reach, context: ssl.SSLContext | None = None) -> None:
        self._reach = reach
        self._options: dict[str, Any] = {"cert_reqs": "CERT_REQUIRED", "ssl_context": context}
        direct = PoolManager(maxsize=_KEPT, **self._options)
        direct.pool_classes_by_scheme = _pools(reach)
        self._managers = {"": direct}  # by the proxy

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: Timeout,
    ) -> Response:
        """Send one request; return its response, of which the body is still to be read.

        Raises urllib3's errors, ValueError for an invalid address, NotAllowed and ConfigError.
        """
        proxy = proxies.proxy_for(url)
        if proxy:
            _check_written(self._reach, url)
        if proxy not in self._managers:
            made = proxies.manager(proxy, connections_kept=_KEPT, **self._options)
            made.pool_classes_by_scheme = _pools(None)
            self._managers.setdefault(proxy, made)
        # A proxy is told the whole address, except in a tunnel.
        _written.target = url if proxy and origin(url)[0] == "http" else target(url)
        raw = self._managers[proxy].urlopen(
            method,
            url,
            body=body,
            headers=headers,
            timeout=timeout,
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        return Response(raw.status, raw.headers, url, headers, raw)

    def close(self) -> None:
        """Close the connections that are not in use."""
        for manager in self._managers.values():
            manager.clear()


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


class _Connection(HTTPConnection):
    reach: Reach | None  # None for a connection to a proxy
    response_class = _Response

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        # urllib3 rewrites escapes, but a signature covers what was written.
        super().putrequest(method, to_the_letter(_written.target, url), *args, **kwargs)

    def _new_conn(self) -> socket.socket:
        if self.reach is None:
            return super()._new_conn()
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


class _TlsConnection(_Connection, HTTPSConnection):
    def connect(self) -> None:
        file, directory = _authorities()
        try:
            self.ssl_context = _trusting(self.ssl_context, file, directory)
        except ssl.SSLError as error:
            raise SSLError(error) from error
        except OSError as error:
            raise ConfigError(
                f"{self.host} cannot be trusted",
                why=f"the node's CA bundle cannot be read: {error}",
                do=f"Correct {' or '.join(_BUNDLES)} in Prolog's environment.",
            ) from error
        if self.proxy:  # TLS with the proxy has a context of its own
            self.ca_certs, self.ca_cert_dir = file, directory
        super().connect()


def _authorities() -> tuple[str | None, str | None]:
    """Return the file or the directory of the authorities that the node trusts."""
    path = next((os.environ[name] for name in _BUNDLES if os.environ.get(name)), None)
    if path is None:
        known = ssl.get_default_verify_paths()
        # OpenSSL reads both, urllib3 only one: an explicit setting takes precedence over a default.
        directory_set = "SSL_CERT_DIR" in os.environ and "SSL_CERT_FILE" not in os.environ
        path = (directory_set and known.capath) or known.cafile or known.capath
    if path is None:
        from requests.utils import DEFAULT_CA_BUNDLE_PATH  # the node has none

        path = DEFAULT_CA_BUNDLE_PATH
    return (None, path) if os.path.isdir(path) else (path, None)


@functools.cache
def _trusting(
    context: ssl.SSLContext | None, file: str | None, directory: str | None
) -> ssl.SSLContext:
    """Return a context that trusts these authorities as well. Raises OSError.

    urllib3 reads a node's authorities anew for each connection, 30 ms of processor time.
    """
    made = context or create_urllib3_context()
    made.load_verify_locations(file, directory)
    return made


def _pools(reach: Reach | None) -> dict[str, type[HTTPConnectionPool]]:
    checked = {"reach": reach}
    plain = type("Plain", (_Connection,), checked)
    tls = type("Tls", (_TlsConnection,), checked)
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
