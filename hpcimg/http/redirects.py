"""Sessions that follow redirects unmodified, and never out of TLS (RFC 9110, section 15.4)."""

from __future__ import annotations

import string
from urllib.parse import quote

import requests

from hpcimg.errors import Forbidden, HpcimgError, Unreachable
from hpcimg.http.urls import address, origin, shown, to_the_letter

REDIRECTS_MAX = 10


class Session(requests.Session):
    """A session that requests addresses exactly as written: a signed one stays valid."""

    def __init__(self) -> None:
        super().__init__()
        self.max_redirects = REDIRECTS_MAX
        self.others: list[Session] = []  # closed together with this one

    def close(self) -> None:
        for other in self.others:
            other.close()
        super().close()

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        prepared = super().prepare_request(request)
        if isinstance(request.url, str) and prepared.url:
            prepared.url = to_the_letter(request.url, prepared.url)
        return prepared

    def should_strip_auth(self, old_url: str, new_url: str) -> bool:
        # requests itself would send it along from http to https.
        return origin(old_url) != origin(new_url)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        try:
            target = super().get_redirect_target(resp)
        except ValueError:  # not UTF-8
            target = quote(resp.headers["Location"].encode("latin-1"), safe=string.printable)
        if target is None:
            return None
        try:
            return _goal(resp.url, target.strip())
        except HpcimgError:
            resp.close()
            raise

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
        goal = (self.get_redirect_target(response) or "").partition("#")[0]
        prepared_request.url = to_the_letter(goal, prepared_request.url or "")


class SessionWithoutRedirects(Session):
    """A session for which a redirect is an answer like any other."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def no_address(what: str, whose: str) -> Unreachable:
    """Return the error for an invalid address in a server's answer: that server's fault."""
    error = Unreachable(what, why=f"{whose} an address that is not http")
    error.tried_again = False
    return error


def _goal(url: str, target: str) -> str:
    """Return the target of a redirect. Raises Unreachable, Forbidden."""
    goal = address(target, base=url)
    if not goal:
        raise no_address(f"{shown(url)} could not be read", "its server redirects to")
    if origin(url)[0] == "https" and origin(goal)[0] == "http":
        raise Forbidden(
            f"{shown(url)} is not read",
            why=f"its server redirects from https to plain http, at {origin(goal)[1]}",
            do="Tell the operators of that server, or use an address that stays on https.",
        )
    return goal
