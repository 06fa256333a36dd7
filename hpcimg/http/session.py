"""HTTP sessions, requests, the meaning of a status, and small JSON answers (RFC 9110)."""

from __future__ import annotations

import http.client
import http.cookiejar
import os
import re
import ssl
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import requests
import urllib3

from hpcimg import __version__, jsontext
from hpcimg.errors import (
    BadReference,
    ConfigError,
    Forbidden,
    HpcimgError,
    NotAnImage,
    NotFound,
    Unreachable,
    UserError,
)
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http import certsd, mirrors
from hpcimg.http.adapter import Adapter
from hpcimg.http.certsd import Certificates
from hpcimg.http.redirects import REDIRECTS_MAX, Session, SessionWithoutRedirects
from hpcimg.http.retry import attempts
from hpcimg.http.urls import shown
from hpcimg.http.waits import retry_after_s
from hpcimg.units import format_duration

# ASCII digits, and not so many that int() refuses them: headers may contain anything.
NUMBER = re.compile(r"[0-9]{1,18}")
JSON_MAX = 4 << 20  # the OCI specification's limit for manifests
_CONNECTIONS_KEPT = 16  # beyond that they are closed after use, with a warning
_REFUSED = frozenset({401, 403, 404, 429})
_ANSWERED_MAX = 8  # refusals of one request: a token may be good for few requests of all threads
# Others below 400 are redirects to nowhere, or are not answers to a GET.
_HAS_CONTENT = frozenset({200, 201, 202, 203, 206})
_OF_URLLIB3 = re.compile(r"^\w+\(host='[^']*', port=\d+\): ")
_TRY_AGAIN = frozenset({408, 425, 429})


class Authorization(Protocol):
    """The credentials of a requester."""

    def headers(self, url: str) -> Mapping[str, str]:
        """Return the headers for a request to this address."""

    def challenged(self, response: requests.Response, *, again: bool) -> bool:
        """Obtain what a 401 asks for, and tell whether to retry.

        Also called for 403, 404 and 429, with which servers hide things from anonymous users.
        `again` says that this was a retry. Raises Forbidden if there is no way.
        """


def open_session(settings: Settings, *, redirects: bool = True) -> Session:
    """Return a session for hpcimg: few redirects, bytes as they are stored.

    It trusts the certificate authorities that the node trusts, including a site's own, rather than
    the bundle of requests. Several threads may use it: it keeps no cookies, the only state that a
    request would change. With `redirects` false a redirect is an answer like any other. It connects
    only to addresses that the settings allow, or raises NotAllowed.
    """
    session = Session() if redirects else SessionWithoutRedirects()
    known = ssl.get_default_verify_paths()
    # OpenSSL reads both, requests only one: an explicit setting takes precedence over a default.
    directory_set = "SSL_CERT_DIR" in os.environ and "SSL_CERT_FILE" not in os.environ
    session.verify = (directory_set and known.capath) or known.cafile or known.capath or True
    session.headers["User-Agent"] = f"hpcimg/{__version__}"
    session.headers["Accept-Encoding"] = "identity"
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    adapter = Adapter(settings.reach(), connections_kept=_CONNECTIONS_KEPT)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return session


def with_certificates(
    session: Session, settings: Settings, certificates: Certificates, url: str
) -> Session:
    """Return a session for one server, at `url`, with certificates of its own.

    Its authorities also apply to servers that it refers to, such as the site's token server; the
    client certificate is used only with that server. It is closed with `session`. Raises
    ConfigError.
    """
    own = open_session(settings)
    session.others.append(own)
    shown_to_all = certificates._replace(client="")
    for prefix, given in (("https://", shown_to_all), (f"{url}/", certificates)):
        context = certsd.context(given, url.partition("//")[2])
        reach = settings.reach()
        own.mount(prefix, Adapter(reach, connections_kept=_CONNECTIONS_KEPT, context=context))
    return own


def trust(session: requests.Session, url: str) -> None:
    """Allow connections to the host of an address that comes from the site."""
    adapter = session.get_adapter("https://")
    assert isinstance(adapter, Adapter)
    adapter.reach.trust(url)


@contextmanager
def request(
    session: requests.Session,
    url: str,
    settings: Settings,
    *,
    headers: Mapping[str, str] | None = None,
    authorization: Authorization | None = None,
    post: bytes | Mapping[str, str] | None = None,
) -> Iterator[requests.Response]:
    """GET a URL, without reading its body. Network errors are raised as Unreachable or similar.

    With `post`, POST that, and do not follow redirects. The caller checks the status, with
    `check_status`; with an `authorization`, refusals have been answered already.
    """
    with _explained(shown(url)):
        for answered in range(_ANSWERED_MAX + 1):
            asked = {**(headers or {}), **(authorization.headers(url) if authorization else {})}
            with _send(session, url, settings, headers=asked, post=post) as response:
                refused = response.status_code in _REFUSED and answered < _ANSWERED_MAX
                again = answered > 0
                if refused and authorization and authorization.challenged(response, again=again):
                    continue
                yield response
                return


@contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except HpcimgError:
        raise
    except requests.exceptions.SSLError as error:
        cause = _innermost(error)
        # Typical of a server that is restarting. Python before 3.11.3 takes one for the other.
        if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            why = "the server ended the connection unexpectedly"
            raise Unreachable(f"{where} could not be read", why=why) from error
        do = (
            "Its certificate must be signed by an authority in this node's CA bundle or, for a"
            f" registry, in {certsd.DIRECTORIES[0]}/HOST/*.crt."
        )
        if "ALERT" in str(cause) and "CERTIFICATE" in str(cause):
            do = (
                "It requires a client certificate: administrators put NAME.cert and NAME.key"
                f" into {certsd.DIRECTORIES[0]}/HOST/."
            )
        elif not isinstance(cause, ssl.SSLCertVerificationError):
            do = "Check the address: the server does not speak TLS, or no version known here."
        raise Forbidden(f"{where} cannot be trusted", why=_reason(error), do=do) from error
    except requests.exceptions.TooManyRedirects as error:
        raise NotFound(
            f"{where} leads nowhere", why=f"it redirects more than {REDIRECTS_MAX} times"
        ) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Unreachable(f"{where} could not be read", why=_reason(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise  # from the sink
        raise ConfigError(
            f"{where} cannot be trusted",
            why=f"the node's CA bundle cannot be read: {error}",
            do="Correct REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE in Prolog's environment.",
        ) from error


def _send(
    session: requests.Session,
    url: str,
    settings: Settings,
    *,
    headers: dict[str, str],
    post: bytes | Mapping[str, str] | None,
) -> requests.Response:
    try:
        return session.request(
            "GET" if post is None else "POST",
            url,
            headers=headers,
            data=post,
            allow_redirects=post is None,  # a redirect would pass on the posted data
            stream=True,
            timeout=(settings.connect_timeout_s, settings.stall_timeout_s),
        )
    except ValueError as error:  # raised by requests for an invalid address
        raise BadReference(
            f"{shown(url)} leads to no address",
            # The error's text contains the address with its query.
            why=f"it is not an http address ({type(error).__name__})",
            do="Check the address.",
        ) from None


def said(status: int) -> str:
    """Return a status with its standard phrase; the server's own may say anything."""
    return f"{status} {http.client.responses.get(status, '')}".strip()


def check_status(response: requests.Response, where: str = "") -> None:
    """Raise the error for a status that comes without the content, in terms that users understand.

    `where` is what the user wrote, for cases where the address itself means little to them.
    """
    status = response.status_code
    where = where or shown(response.url)
    why = f"the server answered {said(status)}"
    if status in _HAS_CONTENT:
        return
    if status in (401, 403):
        raise Forbidden(f"{where} may not be read without permission", why=why)
    if status in (404, 410):
        raise NotFound(f"there is nothing at {where}", why=why)
    if status in _TRY_AGAIN or status >= 500:
        wait_s = retry_after_s(response.headers.get("Retry-After", ""), now=time.time())
        if wait_s:
            why += f" and asks to wait {format_duration(wait_s)}"
        error = Unreachable(f"{where} is unavailable now", why=why)
        error.retry_after_s = wait_s
        raise error
    raise UserError(f"{where} could not be read", why=why)


def get_json(
    session: requests.Session, url: str, sink: Sink, settings: Settings, *, what: str
) -> dict[str, Any]:
    """GET a JSON object of up to 4 MiB; `what` names its subject in errors.

    Mirrors are tried first. Raises NotAnImage if the answer is something else.
    """
    for mirror in mirrors.addresses(url, settings.mirrors):
        asked = request(session, mirror, mirrors.for_answers(settings))
        with mirrors.passed_over(mirror, sink), asked as response:
            return read_json(response, what)
    for attempt in attempts(sink, settings):
        with attempt, request(session, url, settings) as response:
            content = read_json(response, what)
    return content


def read_json(response: requests.Response, what: str) -> dict[str, Any]:
    """Read the JSON object of a response. Raises the error for its status, and NotAnImage."""
    check_status(response, what)
    return parse_json(read_small(response, decode=True), what)


def read_small(response: requests.Response, *, decode: bool) -> bytes:
    """Read a body of up to JSON_MAX bytes, or a few more if it is longer.

    With `decode` it is decompressed. Raises Unreachable through `request` if it is interrupted.
    """
    body = bytearray()
    # Only reading to the end reveals that a body is shorter than announced.
    while data := response.raw.read(JSON_MAX + 1 - len(body), decode_content=decode):
        body += data
    return bytes(body)


def unpacked(body: bytes) -> bytes:
    """Undo the Content-Encoding of a small body; return it unchanged if it is not compressed.

    Some servers compress unasked, and some only claim to.
    """
    try:
        return zlib.decompressobj(wbits=32 + zlib.MAX_WBITS).decompress(body, JSON_MAX + 1)
    except zlib.error:
        return body


def parse_json(body: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object that a server sent. Raises NotAnImage."""
    try:
        if len(body) <= JSON_MAX:
            return jsontext.read_object(body)
        why = "it is too large"
    except ValueError as error:
        why = str(error)
    why = f"the server's answer {why.removeprefix('it ')}"
    raise NotAnImage(f"{what} cannot be looked up", why=why)


def _innermost(error: BaseException) -> BaseException:
    """Return the root cause of an error that requests and urllib3 wrapped several times."""
    while True:
        cause = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(cause, BaseException):
            return error
        error = cause


def _reason(error: BaseException) -> str:
    """Return the message of the root cause."""
    inner = _innermost(error)
    match inner.args:
        case (str(), http.client.BadStatusLine() as cause) if not isinstance(cause, OSError):
            # It quotes what was received, which must not be shown: any service may be listening.
            return "what answers there does not speak HTTP"
        case (str(words), BaseException() as cause):
            # urllib3's message contains the cause, or ends in a full stop.
            return f"{words.partition(':')[0].rstrip('.')}: {str(cause) or type(cause).__name__}"
        case (_, str(words)) if not isinstance(inner, OSError):
            return words
    text = str(inner)
    # urllib3 puts "<object at 0x...>: " or "Name(host='...', port=...): " before the
    # interesting part.
    return _OF_URLLIB3.sub("", text.rpartition(">: ")[2]) or type(inner).__name__
