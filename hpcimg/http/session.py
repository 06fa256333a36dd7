"""HTTP: one session's manners, what a status means, and small answers in JSON (RFC 9110)."""

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

# Digits of ASCII, and not so many that int() refuses them: headers can say anything.
NUMBER = re.compile(r"[0-9]{1,18}")
JSON_MAX = 4 << 20  # what the OCI specification allows a manifest
_CONNECTIONS_KEPT = 16  # above it they are closed after use, with a warning
_REFUSED = frozenset({401, 403, 404, 429})
_OF_URLLIB3 = re.compile(r"^\w+\(host='[^']*', port=\d+\): ")
_TRY_AGAIN = frozenset({408, 425, 429})


class Authorization(Protocol):
    """What a server wants to know of who asks."""

    def headers(self, url: str) -> Mapping[str, str]:
        """Return the headers for a request to this address."""

    def challenged(self, response: requests.Response, *, again: bool) -> bool:
        """Get what a 401 asks for, and tell whether to ask once more.

        Called also for 403, 404 and 429, by which servers hide things from the anonymous.
        `again` says that this was once more. Raises Forbidden where there is no way.
        """


def open_session(settings: Settings, *, redirects: bool = True) -> Session:
    """Return a session with hpcimg's manners: few redirects, bytes as they are stored.

    It trusts whom the node trusts, a site's own authority among them, rather
    than the bundle that comes with requests. Several threads may use it: it
    takes no cookies, the one thing of a session that a request would change.
    With `redirects` false a redirect is an answer like any other. It connects to
    the addresses that the settings allow, or raises NotAllowed.
    """
    session = Session() if redirects else SessionWithoutRedirects()
    known = ssl.get_default_verify_paths()
    # OpenSSL looks into both, requests into one: what was set goes before what is its default.
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
    """Return a session for one server, at `url`, that has certificates of its own.

    Its authorities are trusted for where it sends to as well, such as a token server of the
    site's; who asks is said to that server alone. It is closed with `session`. Raises ConfigError.
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
    """Let the session connect to the host of an address that comes from the site."""
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
    """GET a URL, its body not yet read. Raises Unreachable and kin for what the network does.

    With `post`, POST that, and follow no redirect. The status is the caller's to
    judge, with `check_status`; where there is an `authorization`, a refusal was answered once.
    """
    with _explained(shown(url)):
        for again in (False, True):
            asked = {**(headers or {}), **(authorization.headers(url) if authorization else {})}
            with _send(session, url, settings, headers=asked, post=post) as response:
                refused = response.status_code in _REFUSED
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
        if isinstance(cause, ssl.SSLEOFError):  # as of a server that is just being restarted
            raise Unreachable(f"{where} could not be read", why=_reason(error)) from error
        do = (
            "Its certificate must be one that this node's CA bundle knows; of a registry, one"
            f" from an authority in {certsd.DIRECTORIES[0]}/HOST/*.crt will do."
        )
        if "ALERT" in str(cause) and "CERTIFICATE" in str(cause):
            do = (
                "It wants a certificate from who asks: administrators put NAME.cert and NAME.key"
                f" into {certsd.DIRECTORIES[0]}/HOST/."
            )
        elif not isinstance(cause, ssl.SSLCertVerificationError):
            do = "Check the address: what answers there does not speak TLS as this node does."
        raise Forbidden(f"{where} cannot be trusted", why=_reason(error), do=do) from error
    except requests.exceptions.TooManyRedirects as error:
        raise NotFound(
            f"{where} leads nowhere", why=f"it redirects more than {REDIRECTS_MAX} times"
        ) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Unreachable(f"{where} could not be read", why=_reason(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise  # the sink's
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
            allow_redirects=post is None,  # it would send on what is posted
            stream=True,
            timeout=(settings.connect_timeout_s, settings.stall_timeout_s),
        )
    except ValueError as error:  # what requests raises for an address
        raise BadReference(
            f"{shown(url)} leads to no address",
            # The text of the error has the address with its query in it.
            why=f"it is not an http address ({type(error).__name__})",
            do="Check the address.",
        ) from None


def said(status: int) -> str:
    """Return a status with what it is called; what the server calls it is its own business."""
    return f"{status} {http.client.responses.get(status, '')}".strip()


def check_status(response: requests.Response, where: str = "") -> None:
    """Raise what a status of 400 and above means, in words a user understands.

    `where` is what the user wrote, where the address itself would tell little.
    """
    status = response.status_code
    where = where or shown(response.url)
    why = f"the server answered {said(status)}"
    if status < 400:
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
    """GET a JSON object of up to 4 MiB; `what` names in errors what it is about.

    Mirrors are asked first. Raises NotAnImage where the answer is something else.
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
    """Read the JSON object of a response. Raises what the status means, and NotAnImage."""
    check_status(response, what)
    return parse_json(read_small(response, decode=True), what)


def read_small(response: requests.Response, *, decode: bool) -> bytes:
    """Read a body of up to JSON_MAX bytes; of a longer one there are more than that.

    With `decode` it is unpacked. Raises what `request` makes Unreachable where it is cut off.
    """
    body = bytearray()
    # Only a read at the end of a body tells that it is shorter than was announced.
    while data := response.raw.read(JSON_MAX + 1 - len(body), decode_content=decode):
        body += data
    return bytes(body)


def unpacked(body: bytes) -> bytes:
    """Undo the Content-Encoding of a small body; what is not packed at all is returned as it is.

    There are servers that pack unasked, and such that only say so.
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
    """Return the cause of what requests and urllib3 wrap several times."""
    while True:
        cause = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(cause, BaseException):
            return error
        error = cause


def _reason(error: BaseException) -> str:
    """Return what the innermost cause says."""
    inner = _innermost(error)
    match inner.args:
        case (str(), http.client.BadStatusLine() as cause) if not isinstance(cause, OSError):
            # It has what came in it, which is nobody's business: any service may be there.
            return "what answers there does not speak HTTP"
        case (str(words), BaseException() as cause):
            # urllib3's words have the cause in them or end in a full stop.
            return f"{words.partition(':')[0].rstrip('.')}: {str(cause) or type(cause).__name__}"
        case (_, str(words)) if not isinstance(inner, OSError):
            return words
    text = str(inner)
    # urllib3 puts "<object at 0x...>: " or "Name(host='...', port=...): " before what a reader
    # wants to know.
    return _OF_URLLIB3.sub("", text.rpartition(">: ")[2]) or type(inner).__name__
