"""One table of what servers do wrong, over real sockets, at each place where hpcimg reads from one.

A row is proved for a file on a web server, a registry's manifest or its layer, for all three where
they end differently (or with HPCIMG_LONG=1), and, where that could differ, for an object store and
the server that gives tokens. Each says what becomes of the job, and how often the server was asked.
For every row Prolog exits 0 in time, nothing is left over, and the next job gets the image.

What is not here is proved elsewhere, by the same checks:

- ranges: another part, all instead of a part, a file that changes      test_transfer.py
- resumed after a reset or a cut, wherever it was                       test_transfer.py
- Retry-After near, in seconds and as a date; far, in seconds           test_transfer.py
- every status that passes, several times                               test_transfer.py
- bodies without a length, with and without max_image_size              here, test_transfer.py
- another digest: layer, manifest, object             test_oras_protocol.py, test_s3_protocol.py
- layers of an image that is converted                                  test_docker.py
- tokens: expired, none, busy, redirected                               test_registry_hostile.py
- S3's own errors, and regions                                          test_s3_protocol.py
- certificates, addresses that are none, no server                      test_addresses.py
- connections that are not made, TLS that breaks                        test_fault_connection.py
- a server that is slow or fails over several connections               test_ranges.py
- mirrors that do any of this                                           test_mirrors.py
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import NamedTuple

import pytest

from hpcimg import errors
from tests.integration.checks import failed, finish, got
from tests.integration.conftest import MakeSif, Start
from tests.parts.daemon import TIMEOUT_S
from tests.parts.node import Node
from tests.parts.registry import MANIFEST, SIF_CONFIG, SIF_LAYER
from tests.parts.webanswer import Answer, Fault, Request
from tests.parts.webfaults import (
    Endless,
    Html,
    Raw,
    Redirect,
    RedirectLoop,
    Reset,
    Slow,
    Stall,
    Status,
    Truncate,
    WrongLength,
)
from tests.parts.webserver import WebServer

# Of those that end by a timeout. The others wait for none, however busy the machine is.
DEADLINE_S = 10
SLACK_S = 15
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = bytes(65536)
FAR = formatdate(time.time() + 3600, usegmt=True)


class End(NamedTuple):
    """What becomes of the job: the error's class, words in it or the log, how many requests."""

    error: type[errors.HpcimgError]
    words: str
    asked: int = 1


def again(words: str) -> End:
    """Say that it is asked for again; the second answer, "in an hour", ends that."""
    return End(errors.Unreachable, words, asked=2)


class Row(NamedTuple):
    """What a server does, what follows for a file and both of a registry's, and elsewhere."""

    name: str
    fault: Fault
    file: End
    manifest: End
    layer: End
    object: End | None = None
    token: End | None = None


def alike(name: str, fault: Fault, end: End, **others: End) -> Row:
    """Make a row with the same result everywhere except in `others`."""
    return Row(name, fault, **{"file": end, "manifest": end, "layer": end, **others})


SILENT, RESET = again("Read timed out"), again("Connection reset by peer")
LATE = End(errors.DeadlinePassed, "was not ready in time")
NO_JSON = End(errors.NotAnImage, "is not a JSON object")
CUT_SHORT = End(errors.Damaged, "is truncated")
NO_IMAGE = End(errors.NotAnImage, "is not an image")
# By its length so far, or by the limit that its process has: whichever is met first.
TOO_LARGE = End(errors.TooLarge, "is too large")
TOO_LONG = End(errors.Damaged, "is longer than announced")
MANIFEST_TOO_LARGE = End(errors.NotAnImage, "manifest or config of")
NO_HTTP = again("what answers there does not speak HTTP")
IN_AN_HOUR = End(errors.Unreachable, "answered 429")
CIRCLE = End(errors.NotFound, "redirects more than 10 times", asked=11)
NO_ADDRESS = End(errors.Unreachable, "redirects to an address that is not http")
NOT_FOLLOWED = End(errors.UserError, "redirects of an object store are not followed")
NO_CONTENT = End(errors.UserError, "the server answered 204 No Content")
MEMORY = End(errors.TooLarge, "it takes more memory to fetch than this node allows")

ROWS = [
    # The connection
    alike("cut-off", Truncate(100), again("IncompleteRead(100 bytes read")),
    alike("silent", Stall(60), SILENT, object=SILENT, token=SILENT),
    alike("silent-in-the-body", Stall(60, 50), SILENT),
    alike("reset", Reset(), RESET, object=RESET, token=RESET),
    alike("reset-in-the-body", Reset(50), RESET),
    alike("slow", Slow(4), LATE),
    alike("hangs-up", Raw(b""), again("closed connection without response")),
    # Lengths
    alike("more-announced", WrongLength(+7), again("7 more expected")),
    alike("fewer-announced", WrongLength(-7), CUT_SHORT, manifest=NO_JSON, token=NO_JSON),
    alike("endless", Endless(), TOO_LARGE, manifest=MANIFEST_TOO_LARGE, layer=TOO_LONG,
          object=TOO_LARGE),
    # Chunks
    alike("no-chunk-size", Raw(CHUNKED + b"zz\r\nabc\r\n"), again("InvalidChunkLength"),
          manifest=again("IncompleteRead")),
    alike("chunk-cut-off", Raw(CHUNKED + b"ff\r\nabc"), again("IncompleteRead")),
    alike("endless-chunk", Raw(CHUNKED + b"f" * 15 + b"\r\n" + PIECE, endless=True), TOO_LARGE,
          manifest=MANIFEST_TOO_LARGE, layer=TOO_LONG),
    alike("chunk-of-less-than-nothing", Raw(CHUNKED + b"-1\r\n" + PIECE, endless=True), MEMORY),
    alike("endless-chunk-size", Raw(CHUNKED + b"1" * 65536, endless=True), again("hunk size")),
    alike("endless-trailer", Raw(CHUNKED + b"0\r\n" + b"X: y" * 20_000, endless=True),
          again("trailer line")),
    # The head
    alike("garbage", Raw(b"\0\x1b\xff garbage\r\n\r\n"), NO_HTTP, token=NO_HTTP),
    alike("another-protocol", Raw(b"SSH-2.0-x\r\n" * 9000), NO_HTTP),
    alike("garbage-in-headers", Raw(HEAD + b"no colon\r\n\xff: \xfe\r\n: x\r\n\r\nabc"), NO_IMAGE,
          manifest=NO_JSON, layer=again("was interrupted: after 3 of")),
    alike("a-long-header", Raw(HEAD + b"X: " + b"x" * 200_000), again("got more than 65536 bytes")),
    alike("many-headers", Raw(HEAD + b"X: y\r\n" * 1000), again("got more than 100 headers")),
    alike("slow-head", Raw(HEAD * 99, bytes_per_s=4), LATE, object=LATE, token=LATE),
    alike("going-on-for-ever", Raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 99, endless=True),
          again("too many interim responses")),
    # The status
    alike("busy", Status(429, retry_after=FAR), IN_AN_HOUR, object=IN_AN_HOUR, token=IN_AN_HOUR),
    alike("status-999", Status(999), again("the server answered 999")),
    alike("nothing-in-it", Raw(b"HTTP/1.1 204 No Content\r\n\r\n"), NO_CONTENT),
    alike("a-part", Raw(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc"),
          again("sent the wrong part"), manifest=NO_JSON),
    alike("a-circle", RedirectLoop(), CIRCLE, object=NOT_FOLLOWED, token=CIRCLE),
    alike("to-a-file", Redirect("file:///etc/passwd"), NO_ADDRESS, object=NOT_FOLLOWED,
          token=NO_ADDRESS),
    # The content
    alike("a-page", Html(), NO_IMAGE, manifest=NO_JSON, layer=CUT_SHORT, object=NO_IMAGE,
          token=NO_JSON),
]  # fmt: skip


class Served(NamedTuple):
    """An image that a row is about: its comment, its bytes, the path that the fault is at."""

    comment: str
    data: bytes
    path: str


Serve = Callable[[WebServer, str, bytes], Served]


def serve_file(web: WebServer, name: str, data: bytes) -> Served:
    url = web.put(f"/{name}.sif", data, etag='"1"')
    return Served(f"container:{url}", data, f"/{name}.sif")


def serve_object(web: WebServer, name: str, data: bytes) -> Served:
    web.put(f"/bucket/{name}", data, etag='"1"')
    return Served(f"container:s3://bucket/{name}", data, f"/bucket/{name}")


def serve_manifest(web: WebServer, name: str, data: bytes) -> Served:
    path = f"/v2/{name}/manifests/1"
    web.put(path, manifest_of(data), content_type=MANIFEST)
    web.put(f"/v2/{name}/blobs/{digest(data)}", data, etag='"1"')
    return Served(f"container:oras://127.0.0.1:{web.port}/{name}:1", data, path)


def serve_layer(web: WebServer, name: str, data: bytes) -> Served:
    served = serve_manifest(web, name, data)
    return served._replace(path=f"/v2/{name}/blobs/{digest(data)}")


def serve_token(web: WebServer, name: str, data: bytes) -> Served:
    served = serve_manifest(web, name, data)
    realm = web.put(f"/token/{name}", b'{"token": "T"}')

    def answer(request: Request) -> Answer:
        if request.headers["Authorization"] == "Bearer T":
            return Answer(200, {"Content-Type": MANIFEST}, manifest_of(data))
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}"'})

    web.handle(served.path, answer)
    return served._replace(path=f"/token/{name}")


def manifest_of(data: bytes) -> bytes:
    layer = {"mediaType": SIF_LAYER, "size": len(data), "digest": digest(data)}
    config = {"mediaType": SIF_CONFIG, "size": 2, "digest": digest(b"{}")}
    fields = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    return json.dumps(fields).encode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


PLACES: Mapping[str, Serve] = {
    "file": serve_file,
    "manifest": serve_manifest,
    "layer": serve_layer,
    "object": serve_object,
    "token": serve_token,
}


def rows_at(place: str) -> list[tuple[Row, End]]:
    """Return the rows for a place, each with its end there.

    What ends alike for a file, a manifest and a layer is proved for one of the three, but in a
    long run (HPCIMG_LONG=1) for all.
    """
    alike = ("file", "manifest", "layer")
    return [
        (row, end)
        for number, row in enumerate(ROWS)
        if (end := getattr(row, place))
        and (
            os.environ.get("HPCIMG_LONG")
            or place not in alike
            or place == alike[number % 3]
            or len({getattr(row, each) for each in alike}) > 1
        )
    ]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("slow", [False, True], ids=["at-once", "slow"])
def test_what_follows(
    start: Start, node: Node, web: WebServer, make_sif: MakeSif, place: str, slow: bool
) -> None:
    settings = (
        f"[cache]\nmax_size = 16M\n[s3]\nurl = {web.url()}\n"
        f"[registry 127.0.0.1:{web.port}]\ninsecure = yes\n[stage]\nerror_ttl = 0\n"
    )
    times = f"deadline = {DEADLINE_S}s\nstall_timeout = 2s\n" if slow else "stall_timeout = 5m\n"
    node.configure(settings + times)
    data = make_sif(size_bytes=200_000)
    rows = [(row, end) for row, end in rows_at(place) if (end in (LATE, SILENT)) == slow]
    images = [PLACES[place](web, row.name, _unlike(data, row.name)) for row, _ in rows]
    for (row, _), image in zip(rows, images, strict=True):
        web.script(image.path, [row.fault, Status(503, retry_after="3600")])

    began = time.monotonic()
    prologs = [start(node, job, image.comment) for job, image in enumerate(images)]
    for prolog in prologs:
        finish(prolog)
    assert time.monotonic() - began < (DEADLINE_S + SLACK_S if slow else TIMEOUT_S)
    for job, ((row, end), image) in enumerate(zip(rows, images, strict=True)):
        said = failed(node, job, node.task(job), end.error.__name__).printed
        told = [line for line in node.log().splitlines() if f"job {job}: " in line]
        assert end.words in said + "\n".join(told), (row.name, said, told)
        assert (row.name, web.count(path=image.path)) == (row.name, end.asked)
        assert said.isprintable()
        assert len(said) < 1500, row.name
        # Whatever service was reached by a user's word, what it says is not told.
        assert "SSH-2.0" not in said + node.log()
    assert node.images() == []

    node.configure(settings)
    for image in images:
        web.script(image.path, [])
    comment = " ".join(image.comment for image in images)
    task = node.stage(100, comment, timeout_s=2 * TIMEOUT_S)
    got(node, 100, task, *(image.data for image in images))


def _unlike(data: bytes, name: str) -> bytes:
    """Return an image unlike all others, of the same size: the last bytes are padding."""
    return data[: -len(name)] + name.encode()


@pytest.mark.parametrize("row", ["cut-off", "a-page", "a-circle", "to-a-file", "endless"])
def test_the_exit_code_says_the_same(node: Node, web: WebServer, sif: bytes, row: str) -> None:
    [(fault, end)] = [(known.fault, known.file) for known in ROWS if known.name == row]
    node.configure("[cache]\nmax_size = 16M\n")
    image = serve_file(web, row, sif)
    web.script(image.path, [fault, Status(503, retry_after="3600")])
    done = node.hpcimg("stage", image.comment.removeprefix("container:"))
    assert (done.returncode, node.leftovers()) == (end.error.exit_code, [])
