"""What a web server answers by RFC 9110: pure, apart from how it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from typing import Literal, NamedTuple


@dataclass
class Request:
    """One request as it came, and what has been sent for it so far.

    `headers` are looked up whatever their case; `sent_bytes` counts the body alone. `status`
    is 0 until the status line is out.
    """

    method: str
    path: str
    query: str
    headers: Message
    body: bytes = b""
    status: int = 0
    sent_bytes: int = 0


class Resource(NamedTuple):
    """What is served at a path. `last_modified` is an HTTP date or empty."""

    data: bytes
    etag: str
    last_modified: str
    accept_ranges: bool
    content_type: str
    headers: Mapping[str, str]


class Stop(NamedTuple):
    """What happens once `at` bytes of the body are out; -1 is before the status line."""

    at: int
    how: Literal["close", "reset", "pause"]
    pause_s: float = 0


@dataclass(frozen=True)
class Answer:
    """A response to be sent, and how.

    A Content-Length in `headers` is sent as it is, right or wrong; without one the body's
    own is. `framing` close ends the body with the connection; raw sends nothing but the body,
    which has what a status line and headers would be. `endless` repeats the body for ever.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    framing: Literal["length", "chunked", "close", "raw"] = "length"
    stop: Stop | None = None
    bytes_per_s: float = 0
    endless: bool = False


# Given the right answer, what was asked and what is there, return the answer to send. A fault
# with a true attribute `sticky` stays in the script.
Fault = Callable[[Answer, Request, Resource | None], Answer]


def http_date(epoch_s: float) -> str:
    """Return a date in the format of HTTP headers."""
    return formatdate(epoch_s, usegmt=True)


def right_answer(request: Request, resource: Resource | None) -> Answer:
    """Return what RFC 9110 asks for: validators first, then If-Range and Range.

    Several ranges in one request are answered with everything, as the RFC allows.
    """
    if resource is None:
        return Answer(404, {"Content-Type": "text/plain"}, b"not found\n")
    headers = {"Content-Type": resource.content_type, **resource.headers}
    headers["Accept-Ranges"] = "bytes" if resource.accept_ranges else "none"
    if resource.etag:
        headers["ETag"] = resource.etag
    if resource.last_modified:
        headers["Last-Modified"] = resource.last_modified
    if _is_unchanged(request, resource):
        return Answer(304, headers)
    size = len(resource.data)
    span = wanted_range(request, size) if _may_be_partial(request, resource) else None
    if span is None:
        return Answer(200, headers, resource.data)
    start, end = span
    if start >= end:
        return Answer(416, {**headers, "Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Answer(206, headers, memoryview(resource.data)[start:end])


def wanted_range(request: Request, size: int) -> tuple[int, int] | None:
    """Return the first byte wanted and the one after the last; None where all are."""
    unit, _, span = request.headers.get("Range", "").partition("=")
    first, dash, last = span.strip().partition("-")
    if unit != "bytes" or not dash or "," in span or not (first + last).isdigit():
        return None
    if not first:
        return (max(0, size - int(last)), size)
    return (int(first), min(size, int(last) + 1) if last else size)


def _is_unchanged(request: Request, resource: Resource) -> bool:
    if request.method not in ("GET", "HEAD"):
        return False
    etags = request.headers.get("If-None-Match")
    if etags is not None:
        known = [etag.strip().removeprefix("W/") for etag in etags.split(",")]
        return "*" in known or (resource.etag != "" and resource.etag.removeprefix("W/") in known)
    # As many servers do: the very date, not a later one.
    return resource.last_modified != "" and (
        request.headers.get("If-Modified-Since") == resource.last_modified
    )


def _may_be_partial(request: Request, resource: Resource) -> bool:
    if request.method != "GET" or not resource.accept_ranges or "Range" not in request.headers:
        return False
    condition = request.headers.get("If-Range")
    if condition is None:
        return True
    # A weak validator promises nothing about bytes.
    strong = [] if resource.etag.startswith("W/") else [resource.etag]
    return condition in [value for value in (*strong, resource.last_modified) if value]
