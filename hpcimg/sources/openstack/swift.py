"""swift:// : an object in OpenStack Swift, or in a store with the same protocol.

It is read with a login (`hpcimg.sources.openstack.keystone`), with a temp URL that is signed here,
or without credentials if its container is public.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit

from hpcimg.errors import BadReference, Damaged, Forbidden, NotFound, Unreachable, UserError
from hpcimg.fetch.contract import Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http.connections import Response
from hpcimg.http.download import Get, download
from hpcimg.http.session import Session, check_status, open_session, said
from hpcimg.reference import Reference
from hpcimg.sources import objectnames, web
from hpcimg.sources.openstack import openrc
from hpcimg.sources.openstack.keystone import Login, check_address
from hpcimg.sources.openstack.openrc import Openrc

_MD5 = re.compile(r"[0-9a-f]{32}")
_SKEW_S = 60
_RATE_LIMITED = 498  # specific to Swift
# How long a temp URL remains valid after the fetch: clocks differ.
_GRACE_S = 900


class Access(NamedTuple):
    """How to reach an object: the storage's address, and the credentials."""

    storage_url: str
    how: str
    login: Login | None = None
    key: str = ""


def fetch(reference: Reference, sink: Sink, *, validator: str, settings: Settings) -> bool:
    """Fetch an object; see `hpcimg.sources`."""
    container, name = parse_name(reference)
    path = f"/{quote(container, safe='')}/{quote(name)}"
    md5 = ""

    def offer(response: Response, total: int | None) -> Offer:
        nonlocal md5
        md5 = content_md5(response.headers)
        return web.offer(response, total)

    def check(response: Response) -> None:
        _check(response, reference.uri, access)

    with open_session(settings, redirects=False) as session:
        access = _find_access(session, reference.uri, sink, settings)
        url = access.storage_url + path
        if access.key:
            left = max(0.0, settings.deadline - time.monotonic())
            url += sign(url, access.key, expires=int(time.time() + left + _GRACE_S))
        wanted = Get(url, web.condition(validator), access.login, offer, check)
        unchanged = download(session, wanted, sink, settings)
    if not unchanged and md5 and sink.md5() != md5:
        raise Damaged(
            f"{reference.uri} is not what was stored",
            why=f"{sink.md5()} arrived, its ETag says {md5}",
        )
    return unchanged


def parse_name(reference: Reference) -> tuple[str, str]:
    """Return container and object, as Swift names them. Raises BadReference.

    They are written as in `objectnames`.
    """
    raw = reference.rest
    if "?" in raw:
        raise BadReference(
            f"swift://{raw.partition('?')[0]} has a query",
            why="anyone who sees a signature in a comment could use it",
            do="Write swift://CONTAINER/OBJECT, and %3F for a ? in a name.",
        )
    text = objectnames.decode(reference, raw)
    container, _, name = text.partition("/")
    # Dots would be resolved on the way, and could lead out of the container.
    dots = any(part in (".", "..") for part in text.split("/"))
    if not container or not name or dots or not text.isprintable():
        raise BadReference(
            f"{reference.uri} names no object",
            why="it has . or .. in it" if dots else "",
            do="Write swift://CONTAINER/OBJECT.",
        )
    return container, name


def content_md5(headers: Mapping[str, str]) -> str:
    """Return the digest of the content from its ETag, as `md5:<base64>`; "" for none.

    The ETag of a large object, static or dynamic, covers its segments instead.
    """
    etag = headers.get("ETag", "").strip('"')
    large = "X-Static-Large-Object" in headers or "X-Object-Manifest" in headers
    if large or not _MD5.fullmatch(etag):
        return ""
    return f"md5:{base64.b64encode(bytes.fromhex(etag)).decode()}"


def sign(url: str, key: str, *, expires: int) -> str:
    """Return the query that makes an address a temp URL until `expires`, a Unix time."""
    text = f"GET\n{expires}\n{unquote(urlsplit(url).path)}"
    signature = hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
    return "?" + urlencode({"temp_url_sig": signature, "temp_url_expires": expires})


def _find_access(session: Session, uri: str, sink: Sink, settings: Settings) -> Access:
    """Choose the credentials and log in if necessary. Raises Forbidden if there are none."""
    said = _credentials(settings)
    if said.site:
        session.reach.trust(said.os_storage_url)
    if said.temp_url_key:
        storage_url = said.os_storage_url or settings.service
        storage_url = check_address(storage_url, "the address for TEMP_URL_KEY", said)
        return Access(storage_url, f"with the temp URL key of {said.where}", key=said.temp_url_key)
    if said.st_auth or said.os_auth_url:
        login = Login(session, said, settings)
        login.log_in(sink)
        return Access(login.storage_url, f"with the credentials of {said.where}", login)
    storage_url = said.os_storage_url or settings.service
    if not storage_url:
        raise Forbidden(
            f"{uri} cannot be requested", why="no credentials are known", do=_DO_WITHOUT
        )
    return Access(check_address(storage_url, "the object store's address", said), _WITHOUT)


_WITHOUT = "without credentials"
_DO_WITHOUT = (
    f"Put your credentials into ~/{openrc.OWN_FILE}, where the nodes see your home directory."
)


def _credentials(settings: Settings) -> Openrc:
    if settings.credentials:
        return openrc.parse(settings.credentials, "[swift] auth_file", site=True)
    if not settings.as_user:
        return Openrc(where="[swift] url", site=True)
    path, text = openrc.own()
    return openrc.parse(text, path, site=False)


def _check(response: Response, uri: str, access: Access) -> None:
    """Raise the error for a status; see `hpcimg.http.session.check_status`."""
    status = response.status
    why = f"the object store answered {said(status)}"
    if status == 404:
        raise NotFound(
            f"there is no object {uri}",
            why=f"{why} when it was asked {access.how}",
            do="Check the spelling of container and object.",
        )
    if status == 401 and access.key and (skew_s := _skew_s(response)) > _SKEW_S:
        why += f"; the clocks of the node and the store are {skew_s / 60:.0f} min apart"
    if status in (401, 403):
        raise Forbidden(
            f"{uri} may not be read {access.how}",
            why=why,
            do=_DO_WITHOUT if access.how == _WITHOUT else "",
        )
    if 300 <= status < 400:
        raise UserError(
            f"{uri} could not be read",
            why=f"{why}, and redirects of an object store are not followed",
            do="Correct the address of the object store: [swift] url or OS_STORAGE_URL.",
        )
    if status == _RATE_LIMITED:
        raise Unreachable(f"{uri} is unavailable now", why=why)
    check_status(response, uri)


def _skew_s(response: Response) -> float:
    """Return the offset between the server's clock and ours in seconds, 0 if unknown."""
    try:
        there = email.utils.parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return abs(there - time.time())
