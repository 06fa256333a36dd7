"""Logging in to OpenStack: Keystone's Identity API v3, and the v1 login of tempauth.

Each is a single request. The client libraries would add a dozen packages, other timeouts, unlimited
answers, and 30 to 150 ms of import time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from hpcimg.errors import Forbidden, NotFound, Unreachable
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.connections import Response
from hpcimg.http.retry import attempts
from hpcimg.http.session import Session, check_status, read_json, request
from hpcimg.http.urls import origin
from hpcimg.sources.openstack.openrc import Openrc

_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")  # valid in a header


class Login:
    """A token and the storage address that it belongs to; no other server gets the token.

    It is an Authorization as in `hpcimg.http.session`: when the server rejects the token, it gets a
    new one.
    """

    def __init__(self, session: Session, openrc: Openrc, settings: Settings) -> None:
        """Prepare to log in with the credentials of a file."""
        self._session = session
        self._openrc = openrc
        self._settings = settings
        self._token = ""
        self.storage_url = ""

    def log_in(self, sink: Sink) -> None:
        """Get the token, in as many attempts as it takes. Raises Forbidden, UserError."""
        for attempt in attempts(sink, self._settings):
            with attempt:
                self._log_in()

    def headers(self, url: str) -> Mapping[str, str]:
        """Return the header with the token, for addresses of the storage only."""
        return {"X-Auth-Token": self._token} if origin(url) == origin(self.storage_url) else {}

    def challenged(self, response: Response, *, again: bool) -> bool:
        """Get a new token, since this one has expired or was revoked."""
        if response.status != 401 or again or origin(response.url) != origin(self.storage_url):
            return False
        known = self.storage_url
        self._log_in()
        # The transfer in progress uses the old address.
        return self.storage_url == known

    def _log_in(self) -> None:
        if self._openrc.site:
            self._session.reach.trust(self._openrc.st_auth or self._openrc.os_auth_url)
        found = self._tempauth() if self._openrc.st_auth else self._keystone()
        self.storage_url = check_address(
            self._openrc.os_storage_url or found, "the object store's address", self._openrc
        )
        if self._openrc.site:
            self._session.reach.trust(self.storage_url)

    def _tempauth(self) -> str:
        openrc = self._openrc
        if not openrc.st_user or not openrc.st_key:
            raise openrc.mistake(
                f"{openrc.where} names no user to log in as", do="ST_AUTH needs ST_USER and ST_KEY."
            )
        url = check_address(openrc.st_auth, "ST_AUTH", openrc)
        headers = {"X-Auth-User": _as_header(openrc.st_user)}
        headers["X-Auth-Key"] = _as_header(openrc.st_key)
        with request(self._session, url, self._settings, headers=headers) as response:
            self._check(response, url)
            self._take_token(response.headers.get("X-Auth-Token", ""), url)
            return response.headers.get("X-Storage-Url", "")

    def _keystone(self) -> str:
        openrc = self._openrc
        url = check_address(openrc.os_auth_url, "OS_AUTH_URL", openrc)
        url = f"{url.removesuffix('/v2.0').removesuffix('/v3')}/v3/auth/tokens"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        body = json.dumps({"auth": identity(openrc)}).encode()
        with request(self._session, url, self._settings, headers=headers, post=body) as response:
            self._check(response, url)
            self._take_token(response.headers.get("X-Subject-Token", ""), url)
            answer = read_json(response, url)
        token = answer.get("token")
        if openrc.os_storage_url:
            return ""
        return find_storage(token if isinstance(token, dict) else {}, openrc, url)

    def _check(self, response: Response, url: str) -> None:
        if response.status in (401, 403):
            raise Forbidden(
                f"{url} refuses the credentials of {self._openrc.where}",
                why=f"it answered {response.status}",
                do="Check name, password and project there, and that they have not expired.",
            )
        if 300 <= response.status < 400 or response.status in (404, 405):
            raise NotFound(
                f"{url} is not an identity service",
                why=f"it answered {response.status}",
                do=f"Correct the address in {self._openrc.where}.",
            )
        check_status(response, url)

    def _take_token(self, token: str, url: str) -> None:
        if not _TOKEN.fullmatch(token):
            raise Unreachable(f"{url} gave no token")
        self._token = token


def identity(openrc: Openrc) -> dict[str, Any]:
    """Return the identity and the project, in the format of the Identity API v3."""
    if openrc.os_application_credential_id and openrc.os_application_credential_secret:
        credential = {
            "id": openrc.os_application_credential_id,
            "secret": openrc.os_application_credential_secret,
        }
        method = "application_credential"
        return {"identity": {"methods": [method], method: credential}}
    if not openrc.os_password or not (openrc.os_username or openrc.os_user_id):
        raise openrc.mistake(
            f"{openrc.where} names no user to log in as",
            do="It needs OS_USERNAME and OS_PASSWORD, or OS_APPLICATION_CREDENTIAL_ID and "
            "OS_APPLICATION_CREDENTIAL_SECRET.",
        )
    user = _named(
        openrc.os_user_id, openrc.os_username, openrc.os_user_domain_id, openrc.os_user_domain_name
    )
    user["password"] = openrc.os_password
    auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
    if openrc.os_project_id or openrc.os_project_name:
        domain = openrc.os_project_domain_id, openrc.os_project_domain_name
        auth["scope"] = {"project": _named(openrc.os_project_id, openrc.os_project_name, *domain)}
    return auth


def _named(id_: str, name: str, domain_id: str, domain_name: str) -> dict[str, Any]:
    if id_:
        return {"id": id_}
    if domain_name and not domain_id:
        return {"name": name, "domain": {"name": domain_name}}
    return {"name": name, "domain": {"id": domain_id or "default"}}


def find_storage(token: Mapping[str, Any], openrc: Openrc, url: str) -> str:
    """Return the object store's address from a token's catalog. Raises NotFound."""
    interface = openrc.os_interface.removesuffix("URL") or "public"
    found: dict[str, str] = {}
    for service in _objects(token.get("catalog")):
        if service.get("type") != "object-store":
            continue
        for endpoint in _objects(service.get("endpoints")):
            region = str(endpoint.get("region_id") or endpoint.get("region") or "")
            if endpoint.get("interface") == interface:
                found.setdefault(region, str(endpoint.get("url", "")))
    if not found:
        raise NotFound(
            f"{url} names no object store",
            why=f"its catalog has no {interface} endpoint of the type object-store",
            do="Check the project, or give the address as OS_STORAGE_URL.",
        )
    wanted = openrc.os_region_name
    if wanted and wanted not in found:
        raise NotFound(
            f"there is no object store in the region {wanted}",
            why=f"{url} has {', '.join(sorted(found)[:10])[:200]}",
            do="Correct OS_REGION_NAME.",
        )
    return found[wanted] if wanted else next(iter(found.values()))


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def check_address(url: str, what: str, openrc: Openrc) -> str:
    """Return an address without a trailing slash. Raises UserError, ConfigError."""
    problem = openrc.mistake(
        f"{what} is no address that can be used",
        why=f"it comes from {openrc.where}",
        do="Write https://HOST/PATH.",
    )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise problem from None
    usable = parts.scheme in ("https", "http") and parts.hostname and "@" not in parts.netloc
    if not usable or parts.query or parts.fragment or not url.isprintable():
        raise problem
    return url.rstrip("/")


def _as_header(text: str) -> str:
    return text.encode().decode("latin-1")  # http.client encodes it back to the same bytes
