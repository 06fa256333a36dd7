"""The stand-in web server behaves as the tests assume."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.parts.webanswer import Answer, Fault, Request, http_date
from tests.parts.webfaults import (
    Chunked,
    Corrupt,
    Endless,
    Html,
    IgnoreRange,
    NoLength,
    Ok,
    Redirect,
    RedirectLoop,
    Reset,
    Slow,
    Stall,
    Status,
    Truncate,
    WrongLength,
    WrongRange,
)
from tests.parts.webserver import WebServer

DATA = bytes(range(256)) * 1000
SIZE = len(DATA)
PATH = "/x.sif"
DATE_S = 1_700_000_000


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        server.put(PATH, DATA, etag='"v1"', last_modified=DATE_S)
        yield server


@pytest.fixture
def client(server: WebServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    yield connection
    connection.close()


def get(
    client: http.client.HTTPConnection, method: str = "GET", path: str = PATH, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Ask once and read all; header names are written with _ for -."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request(method, path, headers=fields)
    response = client.getresponse()
    return response.status, response.headers, response.read()


# Good behaviour


def test_get_head_and_missing_on_one_connection(
    server: WebServer, client: http.client.HTTPConnection
) -> None:
    status, headers, body = get(client, path=f"{PATH}?token=1")
    assert (status, body, headers["ETag"]) == (200, DATA, '"v1"')
    assert headers["Last-Modified"] == http_date(DATE_S)
    status, headers, body = get(client, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(SIZE), b"")
    assert get(client, path="/missing")[0] == 404
    assert server.count() == 3
    assert server.count("GET", PATH) == 1
    first = server.log[0]
    assert (first.query, first.status, first.sent_bytes) == ("token=1", 200, SIZE)
    assert first.headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_None_Match": '"v1"'}, 304),
        ({"If_None_Match": 'W/"v1"'}, 304),
        ({"If_None_Match": '"v0", "v1"'}, 304),
        ({"If_None_Match": '"v2"'}, 200),
        ({"If_None_Match": '"v2"', "If_Modified_Since": http_date(DATE_S)}, 200),
        ({"If_Modified_Since": http_date(DATE_S)}, 304),
        ({"If_Modified_Since": http_date(DATE_S - 1)}, 200),
        ({"Range": "bytes=0-0"}, 206),
        ({"Range": "bytes=10-", "If_Range": '"v1"'}, 206),
        ({"Range": "bytes=10-", "If_Range": http_date(DATE_S)}, 206),
        ({"Range": "bytes=10-", "If_Range": '"v2"'}, 200),
        ({"Range": "bytes=0-1,5-6"}, 200),
        ({"Range": "lines=1-2"}, 200),
        ({"Range": f"bytes={SIZE}-"}, 416),
    ],
)
def test_conditions(
    client: http.client.HTTPConnection, headers: dict[str, str], status: int
) -> None:
    answer = get(client, **headers)
    assert answer[0] == status
    assert status != 200 or answer[2] == DATA


@pytest.mark.parametrize(
    ("span", "start", "end"),
    [("10-19", 10, 20), ("255990-", 255990, SIZE), ("-5", 255995, SIZE), ("0-999999", 0, SIZE)],
)
def test_ranges(client: http.client.HTTPConnection, span: str, start: int, end: int) -> None:
    status, headers, body = get(client, Range=f"bytes={span}")
    assert (status, body) == (206, DATA[start:end])
    assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"


def test_no_ranges_where_they_are_not_accepted(
    server: WebServer, client: http.client.HTTPConnection
) -> None:
    server.put("/plain", DATA, accept_ranges=False)
    status, headers, body = get(client, path="/plain", Range="bytes=10-")
    assert (status, headers["Accept-Ranges"], body) == (200, "none", DATA)


def test_a_function_answers(server: WebServer, client: http.client.HTTPConnection) -> None:
    def token(request: Request) -> Answer:
        return Answer(201, {"X-Method": request.method}, request.query.encode() + request.body)

    server.handle("/token", token)
    client.request("POST", "/token?a=1", body=b"&b=2")
    response = client.getresponse()
    assert (response.status, response.headers["X-Method"]) == (201, "POST")
    assert response.read() == b"a=1&b=2"


def test_tls_with_a_certificate_that_can_be_checked() -> None:
    with WebServer(tls=True) as server:
        server.put(PATH, DATA)
        trusting = ssl.create_default_context(cafile=str(server.certificate))
        with urlopen(server.url(PATH), context=trusting) as response:
            assert response.read() == DATA
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urlopen(server.url(PATH))
        directory = server.certificate.parent
    assert not directory.exists()


# Faults


def test_a_script_is_used_up_one_fault_a_request(
    server: WebServer, client: http.client.HTTPConnection
) -> None:
    date = http_date(time.time() + 1)
    server.script(PATH, [Status(503, retry_after="1"), Ok(), Status(429, retry_after=date), Html()])
    answers = [get(client) for _ in range(5)]
    assert [status for status, _, _ in answers] == [503, 200, 429, 200, 200]
    assert [headers["Retry-After"] for _, headers, _ in answers][:3] == ["1", None, date]
    assert answers[3][1]["Content-Type"].startswith("text/html")
    assert answers[4][2] == DATA


@pytest.mark.parametrize(("fault", "got"), [(Truncate(1000), 1000), (WrongLength(+7), SIZE)])
def test_fewer_bytes_than_announced(
    server: WebServer, client: http.client.HTTPConnection, fault: Fault, got: int
) -> None:
    server.script(PATH, [fault])
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(client)
    assert caught.value.partial == DATA[:got]
    assert server.log[0].sent_bytes == got


def test_more_bytes_than_announced(server: WebServer, client: http.client.HTTPConnection) -> None:
    server.script(PATH, [WrongLength(-7)])
    assert get(client)[2] == DATA[:-7]


@pytest.mark.parametrize("tls", [False, True])
def test_reset_before_the_status_and_in_the_body(tls: bool) -> None:
    with WebServer(tls=tls) as server:
        server.put(PATH, DATA)
        server.script(PATH, [Reset(), Reset(1000)])
        trusting = ssl.create_default_context(cafile=str(server.certificate)) if tls else None
        with pytest.raises(ConnectionResetError):
            urlopen(server.url(PATH), context=trusting)
        with urlopen(server.url(PATH), context=trusting) as response:
            assert response.status == 200
            # Python's TLS before 3.14 makes an end of file of a reset.
            with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                response.read()


def test_redirects(server: WebServer, client: http.client.HTTPConnection) -> None:
    server.script("/a", [Redirect("/b", 307), RedirectLoop(), Ok()])
    answers = [get(client, path="/a") for _ in range(4)]
    assert [status for status, _, _ in answers] == [307, 302, 302, 302]
    assert [headers["Location"] for _, headers, _ in answers] == ["/b", "/a", "/a", "/a"]


def test_wrong_ranges(server: WebServer, client: http.client.HTTPConnection) -> None:
    server.script(PATH, [IgnoreRange(), WrongRange(), WrongRange(lie=True), WrongRange()])
    answers = [get(client, Range="bytes=10-19") for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 206, 206]
    assert [headers["Content-Range"] for _, headers, _ in answers] == [
        None,
        f"bytes 9-19/{SIZE}",
        f"bytes 10-19/{SIZE}",
    ]
    assert [body for _, _, body in answers] == [DATA, DATA[9:20], DATA[9:19]]
    # Nobody asked for a range.
    assert get(client)[2] == DATA


def test_without_a_length(server: WebServer, client: http.client.HTTPConnection) -> None:
    server.script(PATH, [Chunked(), NoLength()])
    for _ in range(2):
        _, headers, body = get(client)
        assert (headers["Content-Length"], body) == (None, DATA)


def test_corrupt(server: WebServer, client: http.client.HTTPConnection) -> None:
    server.script(PATH, [Corrupt(5), Corrupt(5), Corrupt(5)])
    body = get(client)[2]
    assert body != DATA
    assert body[:5] + body[6:] == DATA[:5] + DATA[6:]
    assert get(client, Range="bytes=5-5")[2] == b"\x04"
    assert get(client, Range="bytes=6-")[2] == DATA[6:]


def test_endless_until_the_client_leaves(
    server: WebServer, client: http.client.HTTPConnection
) -> None:
    server.script(PATH, [Endless()])
    client.request("GET", PATH)
    response = client.getresponse()
    assert response.read(SIZE * 3) == DATA * 3


def test_slow(server: WebServer, client: http.client.HTTPConnection) -> None:
    server.script(PATH, [Slow(1_000_000)])
    start_s = time.monotonic()
    assert get(client)[2] == DATA
    assert time.monotonic() - start_s > 0.2


def test_stall(server: WebServer, client: http.client.HTTPConnection) -> None:
    server.script(PATH, [Stall(0.1), Stall(0.1, after_bytes=10)])
    for _ in range(2):
        start_s = time.monotonic()
        assert get(client)[2] == DATA
        assert time.monotonic() - start_s > 0.09


# Holding


def test_a_hold_stops_the_body_until_it_is_released(
    server: WebServer, client: http.client.HTTPConnection
) -> None:
    with server.hold(PATH, after_bytes=1000) as hold:
        client.request("GET", PATH)
        hold.wait_reached()
        assert server.log[0].sent_bytes == 1000
        response = client.getresponse()
        assert response.read(1000) == DATA[:1000]
        hold.release()
        assert response.read() == DATA[1000:]
    assert get(client)[2] == DATA


def test_nothing_reaches_a_hold(server: WebServer) -> None:
    with server.hold(PATH) as hold, pytest.raises(TimeoutError, match="nothing reached"):
        hold.wait_reached(timeout_s=0.01)


def test_wait_count(server: WebServer, client: http.client.HTTPConnection) -> None:
    with pytest.raises(TimeoutError, match="0 of 1 GET"):
        server.wait_count(1, "GET", timeout_s=0.01)
    waiter = threading.Thread(target=server.wait_count, args=(2, "GET", PATH))
    waiter.start()
    get(client)
    get(client)
    waiter.join(10)
    assert not waiter.is_alive()


# The end


@pytest.mark.parametrize("tls", [False, True])
def test_the_end_waits_for_no_client(tls: bool) -> None:
    before = threading.active_count()
    start_s = time.monotonic()
    with WebServer(tls=tls) as server:
        server.put(PATH, bytes(50_000_000))
        server.script(PATH, [Stall(60), Stall(60, after_bytes=5), Slow(1), Endless(), Ok(), Ok()])
        trusting = ssl.create_default_context(cafile=str(server.certificate)) if tls else None
        clients: list[socket.socket] = []
        with server.hold(PATH, after_bytes=10):
            for _ in range(6):
                client = socket.create_connection(("127.0.0.1", server.port))
                if trusting:
                    client = trusting.wrap_socket(client, server_hostname="127.0.0.1")
                client.sendall(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                clients.append(client)
            # One that never says a word, not even of TLS.
            clients.append(socket.create_connection(("127.0.0.1", server.port)))
            server.wait_count(6)
    assert time.monotonic() - start_s < 5
    assert threading.active_count() == before
    for client in clients:
        client.close()


def test_quiet(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with WebServer() as server:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
        client.close()
        with socket.create_connection(("127.0.0.1", server.port)) as other:
            other.sendall(b"nonsense\r\n\r\n")
            assert other.recv(1000)
    assert capfd.readouterr() == ("", "")


def test_a_mistake_in_a_handler_is_raised_at_the_end() -> None:
    def broken(request: Request) -> Answer:
        raise ZeroDivisionError

    def use() -> None:
        with WebServer() as server:
            server.handle("/broken", broken)
            with pytest.raises(OSError, match="closed"):
                urlopen(server.url("/broken"))

    with pytest.raises(ZeroDivisionError):
        use()
