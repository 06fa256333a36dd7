"""Authenticating to a registry: anonymously, or with a login, by Basic or by a token.

Distribution's token authentication, and its OAuth2 form for identity tokens.
"""

from __future__ import annotations

import functools
import socket
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn
from urllib.parse import urlencode

from hpcimg.errors import ANOTHER_LOGIN, Forbidden, HpcimgError, TransientError, Unreachable
from hpcimg.fetch.settings import Settings
from hpcimg.http.connections import Response
from hpcimg.http.redirects import no_address
from hpcimg.http.session import Session, check_status, read_json, request
from hpcimg.http.urls import address, origin, shown
from hpcimg.sources.oci.challenges import parse_challenges, why_not
from hpcimg.sources.oci.credentials import Login

_CLIENT = "hpcimg"
# Statuses that may change with another login.
_HIDING = frozenset({401, 403, 404, 410, 429})
# For token servers: OAuth 2.0 (RFC 6749, section 5.2) uses 400 for a rejected login.
_TOKEN_REFUSED = frozenset({400, 401, 403})
_SHORT_WAIT_S = 1.0  # if a registry is too busy, and does not say for how long
_DO = "Check who may read it; store a login with `docker login`, `podman login` or the like."


class RegistryAuthorization:
    """Authenticates requests to one repository of a registry.

    `login` finds a login, and is called when the registry asks for one, or says that there is
    nothing. Several threads may use it: one of them gets a token, and the others wait for it.
    """

    def __init__(
        self,
        session: Session,
        base: str,
        repository: str,
        settings: Settings,
        *,
        uri: str,
        login: Callable[[], Login | None],
    ) -> None:
        """Prepare for the registry at the URL `base`; `uri` is what the user wrote, for errors."""
        self._session = session
        self._base = base
        self._repository = repository
        self._settings = settings
        self._uri = uri
        self._find_login = functools.cache(login)
        self._login: Login | None = None
        self._lock = threading.Lock()
        self._header = ""
        self._uses = 0  # of the header, by all threads

    def use_token(self, token: str) -> None:
        """Use a token obtained elsewhere."""
        self._header = f"Bearer {token}" if _fits_a_header(token) else ""

    def headers(self, url: str) -> Mapping[str, str]:
        """Return the headers for a request to the registry itself; none for other servers."""
        header = self._header
        if not header or origin(url) != origin(self._base):
            return {}
        self._uses += 1
        return {"Authorization": header}

    def has_login(self) -> bool:
        """Tell whether there is a login for this registry."""
        with self._lock:
            return self._find_login() is not None

    def log_in(self) -> None:
        """Use the login, if there is one, before the first request. Raises Forbidden."""
        with self._lock:
            if self._find_login() and (header := self._challenge()):
                self._header = self._answer(header)

    def check(self, response: Response, where: str = "") -> None:
        """Raise the error for a status, as `check_status`, noting whether a login may help."""
        try:
            check_status(response, where)
        except HpcimgError as error:
            if response.status in _HIDING:
                error.login = ANOTHER_LOGIN
                if self._login:
                    error.why += f", to the login in {self._login.source}"
            if isinstance(error, TransientError) and error.login and self._settings.login_next:
                error.tried_again = False
                error.retry_after_s = error.retry_after_s or _SHORT_WAIT_S
            raise

    def challenged(self, response: Response, *, again: bool) -> bool:
        """Answer a 401 with a new token, other refusals with a login if there is one.

        See `hpcimg.http.session.Authorization`.
        """
        if origin(response.url) != origin(self._base):
            return False  # after a redirect to another server, which must get nothing from us
        sent = response.sent.get("Authorization", "")
        with self._lock:
            if response.status != 401:
                # If another thread has logged in since, the answer may change.
                return not again and (sent != self._header or self._log_in(response))
            if sent == self._header:  # otherwise another thread has got a new one since
                if again and self._uses < 2:  # otherwise another thread may have used it up
                    self._refuse("the registry answered 401 again")
                self._header = self._answer(response.headers.get("WWW-Authenticate", ""))
                self._uses = 0
        return True

    def _log_in(self, response: Response) -> bool:
        """Log in at a registry that may hide images from anonymous users, or limit them."""
        if self._login or not self._find_login():
            return False
        header = response.headers.get("WWW-Authenticate", "") or self._challenge()
        if not header:
            return False  # it has no logins
        try:
            self._header = self._answer(header)
        except Forbidden:
            if response.status != 429:
                raise
            self._login = None  # it does not help, and anonymous requests may work later
            return False
        return True

    def _challenge(self) -> str:
        """Return the registry's general challenge, from /v2/."""
        with request(self._session, f"{self._base}/v2/", self._settings) as response:
            own = origin(response.url) == origin(self._base)
            return response.headers.get("WWW-Authenticate", "") if own else ""

    def _answer(self, header: str) -> str:
        """Return the Authorization header that answers a challenge."""
        challenges = parse_challenges(header)
        self._login = login = self._login or self._find_login()
        if login and login.registry_token:
            answer = f"Bearer {login.registry_token}"
        elif "realm" in challenges.get("bearer", {}):
            answer = f"Bearer {self._token(challenges['bearer'], login)}"
        elif "basic" in challenges and login and login.basic:
            answer = login.basic
        else:
            self._refuse("the registry requires a login")
        if answer == self._header or not _fits_a_header(answer):
            self._refuse("the registry answered 401")
        return answer

    def _token(self, asked: Mapping[str, str], login: Login | None) -> str:
        realm = asked["realm"]
        refused = why_not(realm, self._base, secret=login is not None, resolve=_addresses)
        if refused:
            raise Forbidden(
                f"{self._uri} may not be read",
                why=f"the token server of its registry is refused: {refused}",
            )
        query = {"scope": f"repository:{self._repository}:pull"}
        if "service" in asked:
            query["service"] = asked["service"]
        if not address(realm):
            raise no_address(f"{self._uri} could not be read", "its registry requires a login at")
        url, headers, form = realm, {}, None
        if login and login.identity_token:
            secret = {"grant_type": "refresh_token", "refresh_token": login.identity_token}
            form = {**query, **secret, "client_id": _CLIENT}
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
            headers = {"Authorization": login.basic} if login else {}
        with request(self._session, url, self._settings, headers=headers, post=form) as answer:
            if answer.status in _TOKEN_REFUSED:
                self._refuse(f"{shown(realm)} answered {answer.status}")
            if 300 <= answer.status < 400:
                self._refuse(
                    f"{shown(realm)} redirects to another place, and a login is not sent there"
                )
            self.check(answer, shown(realm))
            fields = read_json(answer, shown(realm))
        token = fields.get("token") or fields.get("access_token")
        if not isinstance(token, str) or not _fits_a_header(token):
            raise Unreachable(f"{shown(realm)} gave no token")
        return token

    def _refuse(self, why: str) -> NoReturn:
        how = f"to the login in {self._login.source}" if self._login else "without a login"
        raise Forbidden(f"{self._uri} may not be read", why=f"{why}, {how}", do=_DO)


def _fits_a_header(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _addresses(host: str) -> list[str]:
    """Return the addresses of a host; none if only a proxy, or nobody, can resolve it."""
    try:
        return [
            str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        ]
    except (OSError, ValueError):  # ValueError for an invalid name
        return []
