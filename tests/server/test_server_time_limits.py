"""Connections that say too little: they take nobody's place, and they end."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from live import live
from scripted import Scripted, body

from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.lifecycle import TimeLimits
from tests.conftest import eventually

ASKS = "/v1/chat/completions"
HEAD = f"POST {ASKS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n".encode()
LIMITS = TimeLimits(header_s=0.4, body_s=0.4, idle_s=2.0)


class Served:
    """A server with short limits, and what it counted."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.assistant = Scripted()
        self.operations = Operations(
            slots=1,
            max_waiting=1,
            body_s=LIMITS.body_s,
            observers=(lambda request: self.statuses.append(request.status),),
        )
        self.url = ""

    def connection(self) -> socket.socket:
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname, address.port), timeout=60)


@pytest.fixture
def server() -> Iterator[Served]:
    made = Served()
    with live(app(made.assistant, operations=made.operations), LIMITS) as made.url:
        yield made


def rest_of(connection: socket.socket) -> tuple[bytes, float]:
    """All that still comes on a connection, and the seconds until its end."""
    began, found = time.monotonic(), b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionError:
        pass
    return found, time.monotonic() - began


def test_bodies_that_never_come_take_nobodys_place(server: Served) -> None:
    slow = [server.connection() for _ in range(40)]
    for connection in slow:
        connection.sendall(HEAD + b'{"model"')
    answer = httpx.post(server.url + ASKS, json=body(), timeout=60)
    assert answer.status_code == 200
    with ThreadPoolExecutor(40) as pool:
        ended = list(pool.map(rest_of, slow))
    assert [b"408 " in said and b"body_timeout" in said for said, _ in ended] == [True] * 40
    assert server.statuses.count(408) == 40
    assert (len(server.assistant.turns), server.operations.load.in_progress) == (1, 0)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: lo", b"POST "])
def test_a_connection_whose_headers_do_not_come_is_closed(server: Served, sent: bytes) -> None:
    connection = server.connection()
    connection.sendall(sent)
    said, seconds = rest_of(connection)
    assert said == b""
    assert seconds < 40


def trickled(connection: socket.socket, piece: bytes) -> float:
    """Send a piece again and again; the seconds until the server has closed the connection."""
    began = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - began < 60:
        try:
            connection.sendall(piece)
            while connection.recv(65536):
                pass
            break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\nx: ",
        HEAD.replace(b"500", b"100000"),
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n",
        b"POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 100000\r\n\r\n",
    ],
    ids=["headers", "second headers", "body", "unread body", "no address", "no host"],
)
def test_a_trickle_does_not_lengthen_a_connections_life(server: Served, begin: bytes) -> None:
    connection = server.connection()
    connection.sendall(begin)
    assert trickled(connection, b"a") < 40


def test_a_connection_is_kept_between_requests_and_closed_when_it_is_idle(server: Served) -> None:
    connection = server.connection()
    for _ in range(2):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        said = b""
        while not said.endswith(b"}"):
            said += connection.recv(65536)
        assert said.startswith(b"HTTP/1.1 200")
        time.sleep(0.5)  # longer than headers may take: that time has not begun
    said, seconds = rest_of(connection)
    assert (said, seconds < 40) == (b"", True)


def test_a_client_that_leaves_while_it_uploads_is_a_499(server: Served) -> None:
    connection = server.connection()
    connection.sendall(HEAD + b"{")
    connection.close()
    assert eventually(lambda: server.statuses == [499])


def test_a_client_that_reads_nothing_of_its_answer_loses_it(server: Served) -> None:
    content = json.dumps(body("flood", stream=True)).encode()
    connection = server.connection()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(HEAD.replace(b"500", str(len(content)).encode()) + content)
    assert eventually(lambda: (server.assistant.closed, server.operations.load.in_progress) == (1, 0))
    assert httpx.post(server.url + ASKS, json=body(), timeout=60).status_code == 200


BODY = json.dumps(body("hello")).encode()
CHUNKED = HEAD.replace(b"content-length: 500", b"transfer-encoding: chunked")
GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET  HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"HEAD / HTTP/1.0\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nhost: [\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    b"GET /" + b"a" * 100_000,
    CHUNKED + b"ZZ\r\n",
    CHUNKED + b"5\r\n{\r\n",
    CHUNKED + b"1\r\n{\r\n0\r\n\r\nGET\r\n\r\n",
    HEAD.replace(b"500", str(len(BODY)).encode()) + BODY + b"garbage\r\n\r\n",
    HEAD.replace(b"500", b"5\r\nexpect: 100-continue"),
    HEAD.replace(b"500", b"-5") + b"{}",
    HEAD.replace(b"500", b"9" * 30) + b"{}",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
]


def test_nothing_that_arrives_on_a_socket_writes_a_traceback(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for content in GARBAGE:
        for cut in (len(content), len(content) // 2):
            for waits in (True, False):
                connection = server.connection()
                with contextlib.suppress(OSError):
                    connection.sendall(content[:cut])
                    connection.settimeout(0.1)
                    if waits:
                        connection.recv(100)
                connection.close()
    assert httpx.post(server.url + ASKS, json=body(), timeout=60).status_code == 200
    assert [
        r.getMessage() for r in caplog.records if r.exc_info or r.levelname in ("ERROR", "CRITICAL")
    ] == []
    assert eventually(lambda: server.operations.load.in_progress == 0), (
        "what is left half said ends by its limit"
    )
