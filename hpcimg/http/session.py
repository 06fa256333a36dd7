"""HTTP sessions, requests, the meaning of a status, and small JSON answers (RFC 9110)."""

from __future__ import annotations

import http.client
import re
import ssl
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import urlencode

import urllib3

from hpcimg import __version__, jsontext
from hpcimg.errors import (
    BadReference,
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
from hpcimg.http.addresses import Reach
from hpcimg.http.certsd import Certificates
from hpcimg.http.connections import Connections, Response
from hpcimg.http.redirects import REDIRECTS_MAX, goal_of, location_of
from hpcimg.http.retry import attempts
from hpcimg.http.urls import Origin, origin, shown
from hpcimg.http.waits import retry_after_s
from hpcimg.units import format_duration

# ASCII digits, and not so many that int() refuses them: headers may contain anything.
NUMBER = re.compile(r"[0-9]{1,18}")
JSON_MAX = 4 << 20  # the OCI specification's limit for manifests
_HEADERS = {"User-Agent": f"hpcimg/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
_SKIPPED_MAX = 1 << 16
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

    def challenged(self, response: Response, *, again: bool) -> bool:
        """Obtain what a 401 asks for, and tell whether to retry.

        Also called for 403, 404 and 429, with which servers hide things from anonymous users.
        `again` says that this was a retry. Raises Forbidden if there is no way.
        """


class Session:
    """The requests of one fetch, each exactly as written: a signed address stays valid.

    They go only to addresses that `reach` allows. Several threads may use it: it keeps no cookies.
    `context` is for TLS with all servers but those that have one of their `own`, by origin.
    """

    def __init__(
        self,
        reach: Reach,
        *,
        redirects: bool = True,
        context: ssl.SSLContext | None = None,
        own: Mapping[Origin, ssl.SSLContext] = MappingProxyType({}),
    ) -> None:
        """Prepare it. With `redirects` false a redirect is an answer like any other."""
        self.reach = reach
        self._redirects = redirects
        self._own = {server: Connections(reach, each) for server, each in own.items()}
        self._all = Connections(reach, context)
        self._closing = ExitStack()
        for connections in (self._all, *self._own.values()):
            self._closing.callback(connections.close)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def with_certificates(self, certificates: Certificates, url: str) -> Session:
        """Return a session for one server, at `url`, with certificates of its own.

        Its authorities also apply to servers that it refers to, such as the site's token server;
        the client certificate is used only with that server. It is closed with this one. Raises
        ConfigError.
        """
        host = url.partition("//")[2]
        shown_to_all = certificates._replace(client="")
        made = Session(
            self.reach,
            redirects=self._redirects,
            context=certsd.context(shown_to_all, host),
            own={origin(url): certsd.context(certificates, host)},
        )
        return self._closing.enter_context(made)

    def send(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        post: bytes | Mapping[str, str] | None,
        timeout: urllib3.Timeout,
    ) -> Response:
        """GET, or POST what is given; follow redirects of a GET. The response is open.

        Raises NotFound for too many redirects, and otherwise as `Connections.exchange` and
        `redirects.goal_of`.
        """
        at, asked = url, {**_HEADERS, **headers}
        if isinstance(post, Mapping):
            asked["Content-Type"] = "application/x-www-form-urlencoded"
            post = urlencode(post).encode()
        method = "GET" if post is None else "POST"
        for _ in range(REDIRECTS_MAX + 1):
            through = self._own.get(origin(at), self._all)
            response = through.exchange(method, at, headers=asked, body=post, timeout=timeout)
            # A redirect would pass on the posted data.
            follows = self._redirects and post is None
            location = location_of(response.status, response.headers) if follows else ""
            if not location:
                return response
            with closing(response.raw):
                _skip(response)
            goal = goal_of(at, location)
            if origin(goal) != origin(at):
                asked = {name: value for name, value in asked.items() if name != "Authorization"}
            at = goal
        raise NotFound(
            f"{shown(url)} leads nowhere", why=f"it redirects more than {REDIRECTS_MAX} times"
        )


def open_session(settings: Settings, *, redirects: bool = True) -> Session:
    """Return a session for a fetch with these settings."""
    return Session(settings.reach(), redirects=redirects)


@contextmanager
def request(
    session: Session,
    url: str,
    settings: Settings,
    *,
    headers: Mapping[str, str] | None = None,
    authorization: Authorization | None = None,
    post: bytes | Mapping[str, str] | None = None,
) -> Iterator[Response]:
    """GET a URL, without reading its body. Network errors are raised as Unreachable or similar.

    With `post`, POST that, and do not follow redirects. The caller checks the status, with
    `check_status`; with an `authorization`, refusals have been answered already.
    """
    try:
        for answered in range(_ANSWERED_MAX + 1):
            asked = {**(headers or {}), **(authorization.headers(url) if authorization else {})}
            response = _send(session, url, settings, headers=asked, post=post)
            with closing(response.raw):
                refused = response.status in _REFUSED and answered < _ANSWERED_MAX
                again = answered > 0
                if refused and authorization and authorization.challenged(response, again=again):
                    _skip(response)
                    continue
                yield response
                return
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"{shown(url)} could not be read", why=_reason(error)) from error


def _send(
    session: Session,
    url: str,
    settings: Settings,
    *,
    headers: Mapping[str, str],
    post: bytes | Mapping[str, str] | None,
) -> Response:
    timeout = urllib3.Timeout(connect=settings.connect_timeout_s, read=settings.stall_timeout_s)
    try:
        return session.send(url, headers=headers, post=post, timeout=timeout)
    except urllib3.exceptions.SSLError as error:
        raise _untrusted(shown(url), error) from error
    except ValueError as error:
        raise BadReference(
            f"{shown(url)} leads to no address",
            # The error's text contains the address with its query.
            why=f"it is not an http address ({type(error).__name__})",
            do="Check the address.",
        ) from None


def _skip(response: Response) -> None:
    """Read a short body to its end, so that the connection can be used again."""
    left = response.raw.length_remaining
    if left is not None and left <= _SKIPPED_MAX:
        with suppress(urllib3.exceptions.HTTPError):
            response.raw.read()


def _untrusted(where: str, error: urllib3.exceptions.SSLError) -> HpcimgError:
    """Return the error for a TLS handshake that failed."""
    cause = _innermost(error)
    # Typical of a server that is restarting. Python before 3.11.3 takes one for the other.
    if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        why = "the server ended the connection unexpectedly"
        return Unreachable(f"{where} could not be read", why=why)
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
    return Forbidden(f"{where} cannot be trusted", why=_reason(error), do=do)


def said(status: int) -> str:
    """Return a status with its standard phrase; the server's own may say anything."""
    return f"{status} {http.client.responses.get(status, '')}".strip()


def check_status(response: Response, where: str = "") -> None:
    """Raise the error for a status that comes without the content, in terms that users understand.

    `where` is what the user wrote, for cases where the address itself means little to them.
    """
    status = response.status
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
    session: Session, url: str, sink: Sink, settings: Settings, *, what: str
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


def read_json(response: Response, what: str) -> dict[str, Any]:
    """Read the JSON object of a response. Raises the error for its status, and NotAnImage."""
    check_status(response, what)
    return parse_json(read_small(response, decode=True), what)


def read_small(response: Response, *, decode: bool) -> bytes:
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
    """Return the root cause of an error that urllib3 wrapped several times."""
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
