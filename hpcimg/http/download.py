"""A download over HTTP that resumes where the last attempt ended (RFC 9110, ranges)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import NamedTuple

from hpcimg.errors import Damaged, TransientError, Unreachable
from hpcimg.fetch.contract import MIRROR, Blob, Offer
from hpcimg.fetch.settings import Settings
from hpcimg.fetch.sink import Sink
from hpcimg.http import mirrors, ranges
from hpcimg.http.connections import Response
from hpcimg.http.retry import attempts
from hpcimg.http.session import NUMBER, Authorization, Session, check_status, request
from hpcimg.http.urls import shown

MakeOffer = Callable[[Response, int | None], Offer]
_CHUNK = 1 << 18  # a broken connection loses the current chunk
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Get(NamedTuple):
    """What to get from a server, and how to read its answers.

    `headers` may be a function, called for each attempt. `offer` makes the offer from the
    headers of a response and its length; without it the offer was made before. `check` raises
    the error that a response without the body stands for.
    """

    url: str
    headers: Mapping[str, str] | Callable[[], Mapping[str, str]] = MappingProxyType({})
    authorization: Authorization | None = None
    offer: MakeOffer | None = None
    check: Callable[[Response], None] = check_status


def download(
    session: Session,
    wanted: Get,
    sink: Sink,
    settings: Settings,
    *,
    size_bytes: int | None = None,
    stored: Blob | None = None,
) -> bool:
    """Download a body into the sink, from a mirror if the site has one that works.

    A mirror gets no authorization and no headers except conditions, and what it sends must match
    the offer, or be an image. The rest is as in `download_from`.
    """

    def asked() -> Mapping[str, str]:
        given = wanted.headers
        return mirrors.conditions(given() if callable(given) else given)

    found = mirrors.addresses(wanted.url, settings.mirrors)
    known = sink.offered
    if found and wanted.offer is None and known is not None:
        wanted = wanted._replace(offer=lambda _response, _total: known)
    for mirror in found:
        with mirrors.passed_over(mirror, sink):
            unchanged = download_from(
                session,
                Get(mirror, asked, offer=_by_mirror(wanted.offer), check=_at_once),
                sink,
                mirrors.for_files(settings),
                size_bytes=size_bytes,
                stored=stored,
            )
            if not unchanged:
                sink.check(shown(mirror))
            return unchanged
    return download_from(session, wanted, sink, settings, size_bytes=size_bytes, stored=stored)


def _by_mirror(offer: MakeOffer | None) -> MakeOffer | None:
    """Return a function that makes the same offer, marked as coming from a mirror."""
    if offer is None:
        return None
    return lambda response, total: offer(response, total)._replace(via=MIRROR)


def _at_once(response: Response) -> None:
    """Raise the error that a mirror's refusal stands for: it is not asked again."""
    try:
        check_status(response)
    except TransientError as error:
        error.tried_again = False
        raise


def download_from(
    session: Session,
    wanted: Get,
    sink: Sink,
    settings: Settings,
    *,
    size_bytes: int | None = None,
    stored: Blob | None = None,
) -> bool:
    """Download the body of this URL into the sink, in as many attempts as it takes.

    An attempt resumes where the last one ended if the server can do that and still has the same
    file; otherwise it starts over. A transfer that is slow over one connection continues over
    several, if the server can do that. With `size_bytes`, a body of another length is Damaged,
    and no more than that is written. `stored` is a file that never changes at its URL: then no
    validators are needed to resume, and replicas may have different ones; a body with a
    Content-Encoding and another length was compressed in transit, and is decompressed. Returns
    True where the server answered 304 to a condition in the headers.
    """
    url, headers, authorization, offer, check = wanted
    same: dict[str, str] = {}
    fixed = False  # whether any part of this server's will do

    def given() -> Mapping[str, str]:
        return headers() if callable(headers) else headers

    def get(asked: Mapping[str, str]) -> AbstractContextManager[Response]:
        return request(session, url, settings, headers=asked, authorization=authorization)

    def read(begin: int, end: int) -> bytes:
        with get({**given(), **same, "Range": f"bytes={begin}-{end - 1}"}) as response:
            check(response)
            if response.status != 206:
                raise Unreachable(f"{shown(url)} changed while it was read")
            _check_part(response, url, begin, same)
            return _read_all(response, end - begin, url)

    for attempt in attempts(sink, settings):
        with attempt:
            asked = dict(given())
            conditional = any(name.startswith("If-") for name in asked)
            if sink.position and (same or fixed):
                asked.update({} if fixed else same, Range=f"bytes={sink.position}-")
            with get(asked) as response:
                if response.status == 304 and conditional:
                    return True
                if response.status == 416 and sink.position:
                    same = {}
                    sink.rewind()
                    raise Unreachable(f"{shown(url)} changed while it was read")
                check(response)
                total = _begin(response, sink, url, {} if fixed else same)
                joined = fixed and sink.position > 0
                same, fixed = _same(response), stored is not None
                if coded := _is_coded(response, stored):
                    total, same, fixed = None, {}, False
                if offer and not sink.position:
                    sink.offer(offer(response, total))
                if total is not None:
                    _check_length(total, size_bytes, url)
                slow = _read_while_fast(
                    response,
                    sink,
                    total if same else None,
                    size_bytes=size_bytes,
                    url=url,
                    decode=coded,
                )
            if slow and total:
                ranges.fetch_rest(sink, total, read)
            sink.tell()
            expected = sink.position if total is None else total
            # A body without a length ends wherever the connection does.
            if total is None and stored and size_bytes is None:
                expected = max(expected, stored.size_bytes)
            if sink.position != expected:
                raise Unreachable(
                    f"{shown(url)} was interrupted",
                    why=f"after {sink.position} of {expected} bytes",
                )
            _check_length(sink.position, size_bytes, url)
            if joined and stored and sink.sha256() != stored.sha256:
                same, fixed = {}, False
                sink.rewind()
                raise Unreachable(f"{shown(url)} changed while it was read")
    return False


def _check_length(length: int, size_bytes: int | None, url: str) -> None:
    if size_bytes is not None and length != size_bytes:
        raise Damaged(
            f"{shown(url)} is not what was announced",
            why=f"it has {length} bytes, expected {size_bytes}",
        )


def _begin(response: Response, sink: Sink, url: str, same: Mapping[str, str]) -> int | None:
    """Set the sink to where this body begins; return the length of the whole.

    `same` is the condition from the first part, which identifies the file, if any.
    """
    # RFC 9112, section 6.3: a length beside a transfer coding means nothing.
    chunked = "Transfer-Encoding" in response.headers
    length = "" if chunked else response.headers.get("Content-Length", "")
    if response.status == 206:
        try:
            return _check_part(response, url, sink.position, same)
        except Unreachable:
            sink.rewind()
            raise
    if sink.position:
        sink.rewind()
    return int(length) if NUMBER.fullmatch(length) else None


def _check_part(response: Response, url: str, begin: int, same: Mapping[str, str]) -> int | None:
    """Return the length of the whole; check that this is the wanted part. Raises Unreachable."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != begin:
        raise Unreachable(
            f"{shown(url)} sent the wrong part",
            why=response.headers.get("Content-Range", "no Content-Range"),
        )
    # Some object stores send part of the current file, whatever If-Range says.
    if same and _same(response) not in ({}, same):
        raise Unreachable(f"{shown(url)} changed while it was read")
    return None if match[3] == "*" else int(match[3])


def _read_while_fast(
    response: Response,
    sink: Sink,
    total: int | None,
    *,
    size_bytes: int | None,
    url: str,
    decode: bool,
) -> bool:
    """Read a body into the sink; return True if it should be read in another way.

    `total` is None if there is no other way. Raises Damaged if more than `size_bytes` arrive.
    """
    begin, began = sink.position, time.monotonic()
    takes_ranges = response.status == 206 or response.headers.get("Accept-Ranges") == "bytes"
    for chunk in response.raw.stream(_CHUNK, decode_content=decode):
        if size_bytes is not None and sink.position + len(chunk) > size_bytes:
            _check_length(sink.position + len(chunk), size_bytes, url)
        sink.write(chunk)
        if (
            takes_ranges
            and total
            and ranges.worth_while(
                came_bytes=sink.position - begin,
                took_s=time.monotonic() - began,
                left_bytes=total - sink.position,
            )
        ):
            return True
    return False


def _read_all(response: Response, length: int, url: str) -> bytes:
    data = bytearray()
    for chunk in response.raw.stream(_CHUNK, decode_content=False):
        data += chunk
        if len(data) > length:
            break
    if len(data) != length:
        raise Unreachable(
            f"{shown(url)} was interrupted", why=f"{len(data)} of {length} bytes arrived"
        )
    return bytes(data)


def _is_coded(response: Response, stored: Blob | None) -> bool:
    """Tell whether a body was really compressed in transit.

    Then it has no length; object stores that claim x-gzip for a compressed file send one.
    """
    coding = response.headers.get("Content-Encoding", "").lower()
    if stored is None or response.status != 200:
        return False
    length = response.headers.get("Content-Length", "")
    return coding == "gzip" and length != str(stored.size_bytes)


def _same(response: Response) -> dict[str, str]:
    """Return the condition for a safe resume: the rest of the same file, or all of the new one."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return {"If-Range": etag}
    date = response.headers.get("Last-Modified", "")
    return {"If-Range": date} if date else {}
