"""Ways for a web server to misbehave, one for each request: see `WebServer.script`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.parts.webanswer import Answer, Request, Resource, Stop, right_answer, wanted_range

_HTML = b"<!DOCTYPE html><html><body><h1>You have reached your limit</h1></body></html>\n"


class Ok:
    """No fault: a good answer between bad ones."""

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return answer


# The connection


@dataclass(frozen=True)
class Truncate:
    """Close in the middle of the body, after the full length was announced."""

    after_bytes: int

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return replace(answer, stop=Stop(self.after_bytes, "close"))


@dataclass(frozen=True)
class Reset:
    """Reset the connection (RST); -1 is before the status line."""

    after_bytes: int = -1

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return replace(answer, stop=Stop(self.after_bytes, "reset"))


@dataclass(frozen=True)
class Stall:
    """Send nothing for a while, then go on; -1 is before the status line."""

    pause_s: float
    after_bytes: int = -1

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return replace(answer, stop=Stop(self.after_bytes, "pause", self.pause_s))


@dataclass(frozen=True)
class Slow:
    """Send the body at a steady rate."""

    bytes_per_s: float

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return replace(answer, bytes_per_s=self.bytes_per_s)


@dataclass(frozen=True)
class Raw:
    """Send these bytes in place of status line, headers and body, then hang up."""

    data: bytes
    bytes_per_s: float = 0
    endless: bool = False

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        body, rate = self.data, self.bytes_per_s
        return Answer(0, body=body, framing="raw", bytes_per_s=rate, endless=self.endless)


# The status


@dataclass(frozen=True)
class Status:
    """Answer with this status. `retry_after` is in seconds or an HTTP date."""

    status: int
    retry_after: str = ""
    body: bytes = b"refused by the script\n"
    headers: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        headers = {"Content-Type": "text/plain", **self.headers}
        if self.retry_after:
            headers["Retry-After"] = self.retry_after
        return Answer(self.status, headers, self.body)


@dataclass(frozen=True)
class Redirect:
    """Send the client to another address or path."""

    to: str
    status: int = 302

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return Answer(self.status, {"Location": self.to})


class RedirectLoop:
    """Send the client back to the same path, for as long as it comes."""

    sticky = True

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return Answer(302, {"Location": request.path})


# Lengths and ranges


@dataclass(frozen=True)
class WrongLength:
    """Announce so many bytes more than are sent, or fewer where it is negative."""

    by: int

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        length = str(len(answer.body) + self.by)
        return replace(answer, headers={**answer.headers, "Content-Length": length})


class IgnoreRange:
    """Send everything, with status 200, whatever range was asked for."""

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        if answer.status != 206 or resource is None:
            return answer
        headers = {name: value for name, value in answer.headers.items() if name != "Content-Range"}
        return replace(answer, status=200, headers=headers, body=resource.data)


@dataclass(frozen=True)
class WrongRange:
    """Send a range that starts so many bytes off; with `lie` call it the one asked for."""

    by: int = -1
    lie: bool = False

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        span = wanted_range(request, len(resource.data)) if resource else None
        if answer.status != 206 or resource is None or span is None:
            return answer
        start, end = max(0, span[0] + self.by), span[1] + (self.by if self.lie else 0)
        headers = dict(answer.headers)
        if not self.lie:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(resource.data)}"
        return replace(answer, headers=headers, body=memoryview(resource.data)[start:end])


class Chunked:
    """No fault, but no length either: chunked transfer coding."""

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return replace(answer, framing="chunked")


class NoLength:
    """No length, and the body ends with the connection: whole or not, nobody can tell."""

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return replace(answer, framing="close")


class Endless:
    """Send the data again and again, without a length, until the client hangs up."""

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return replace(answer, framing="chunked", endless=True, body=answer.body or bytes(65536))


# The content


@dataclass(frozen=True)
class Html:
    """A page instead of the file, with status 200: a portal, a limit reached, a ban."""

    body: bytes = _HTML

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        return Answer(200, {"Content-Type": "text/html; charset=utf-8"}, self.body)


@dataclass(frozen=True)
class Corrupt:
    """Flip a bit of one byte of the file; ranges without it are sound."""

    at: int = 0

    def __call__(self, answer: Answer, request: Request, resource: Resource | None) -> Answer:
        if resource is None:
            return answer
        data = bytearray(resource.data)
        data[self.at] ^= 1
        return right_answer(request, resource._replace(data=bytes(data)))
