"""What one connection may take: head, answer, and what is no HTTP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from foldserve.serving.web_server import connection as bounds
from tests.serving.web_server.conftest import LARGE_BYTES, get, is_closed, receive_answer, warnings_of
from tests.support.repository_changes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serving.web_server.conftest import Site


def test_client_that_receives_nothing_is_cut_off(
    serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "_RECEIVE_LIMIT_S", 0.1)
    monkeypatch.setattr(bounds, "_LEAST_BYTES_PER_S", 1e9)
    site = serve()
    for headers in ((), ("Connection: close",)):
        with site.connect(get("/large", *headers)) as connection:
            eventually(lambda: site.connection_count == 1, "it is accepted")
            eventually(lambda: site.connection_count == 0, "it is cut off")
            assert len(receive_answer(connection)) < LARGE_BYTES


def test_client_that_receives_late_gets_everything(
    serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "_RECEIVE_LIMIT_S", 0.1)
    monkeypatch.setattr(bounds, "_LEAST_BYTES_PER_S", LARGE_BYTES / 60)
    site = serve()
    with site.connect(get("/large")) as connection:
        eventually(lambda: site.connection_count == 1, "it is accepted")
        for _ in range(2):
            assert len(receive_answer(connection)) > LARGE_BYTES
            connection.sendall(get("/large"))


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "part"])
def test_large_head_is_refused(serve: Callable[..., Site], *, is_whole: bool) -> None:
    """Also one that comes at once."""
    site = serve(max_head_bytes=1000)
    content = get("/", "X: " + "x" * 2000)
    with site.connect(content if is_whole else content[:-2]) as connection:
        answer = receive_answer(connection)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert answer.endswith(b"refused: the request's head is larger than the 1,000 bytes allowed")
        assert is_closed(connection)


def test_heads_are_counted_one_by_one(serve: Callable[..., Site]) -> None:
    site = serve(max_head_bytes=1000)
    with site.connect() as connection:
        for _ in range(5):
            content = get("/", "X: " + "x" * 800)
            connection.sendall(content[:100])
            time.sleep(0.02)  # so that the server sees a part of a head
            connection.sendall(content[100:])
            assert receive_answer(connection).endswith(b"ok")
        body = b"x" * 5000
        connection.sendall(get("/", f"Content-Length: {len(body)}") + body)
        assert receive_answer(connection).endswith(b"ok")
        connection.sendall(get("/"))
        assert receive_answer(connection).endswith(b"ok")


@pytest.mark.parametrize(
    ("request_before", "content"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"", b"GET / HT", id="part of a head"),
        pytest.param(get("/"), b"GET / HT", id="part of a second head"),
        pytest.param(get("/"), b"\r\n", id="an empty line after a request"),
        pytest.param(get("/", "Content-Length: 99"), b"x", id="part of a body that nobody read"),
    ],
)
def test_slow_client_is_cut_off(serve: Callable[..., Site], request_before: bytes, content: bytes) -> None:
    site = serve(head_s=0.2, keep_alive_s=3600)
    with site.connect(request_before) as connection:
        if request_before:
            assert receive_answer(connection).endswith(b"ok")
        connection.sendall(content)
        assert is_closed(connection)


def test_slow_head_and_body_in_time_are_read(serve: Callable[..., Site]) -> None:
    site = serve()
    with site.connect() as connection:
        for content in (get("/", "Content-Length: 3") + b"abc", get("/")):
            for number in range(len(content)):
                connection.sendall(content[number : number + 1])
            assert receive_answer(connection).endswith(b"ok")


@pytest.mark.parametrize("content", [b"\x00" * 50, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n\r\n"])
def test_what_is_not_http_is_refused_with_a_hint(
    serve: Callable[..., Site], caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    site = serve()
    with site.connect(content) as connection:
        answer = receive_answer(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"refused: this is not an HTTP/1.1 request; gRPC has another port")
        assert is_closed(connection)
    assert not warnings_of(caplog)


@pytest.mark.parametrize("count", [1, 2])
def test_garbage_behind_running_requests_ends_the_connection_once_they_are_answered(
    serve: Callable[..., Site], caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """Such as a body that is longer than its Content-Length."""
    site = serve(max_running=None)
    with site.connect(get("/hold", "Content-Length: 3") + b"abc") as connection:
        eventually(lambda: site.holding_count == 1, "it is under way")
        connection.sendall(get("/hold") * (count - 1) + b"de\r\n\r\n" + get("/"))
        time.sleep(0.05)  # so that the server has read it
        site.release.set()
        received = b""
        while more := connection.recv(65536):
            received += more
        assert received.count(b"\r\n\r\nok") == count
        assert received.count(b"\r\nconnection: close\r\n") == 1
    with site.connect(get("/")) as other:
        assert receive_answer(other).endswith(b"ok")
    assert not warnings_of(caplog)


def test_garbage_behind_a_request_whose_answer_is_on_the_way_ends_the_connection_too(
    serve: Callable[..., Site],
) -> None:
    site = serve()
    with site.connect(get("/large")) as connection:
        assert connection.recv(10).startswith(b"HTTP/1.1 2")
        connection.sendall(b"\x00" * 50)
        rest = 0
        while more := connection.recv(1 << 20):
            rest += len(more)
        assert rest > LARGE_BYTES
    eventually(lambda: site.connection_count == 0, "it has ended")


@pytest.mark.parametrize("before", [b"", b"3\r\nabc\r\n"], ids=["first", "later"])
def test_malformed_chunks_are_refused(
    serve: Callable[..., Site], caplog: pytest.LogCaptureFixture, before: bytes
) -> None:
    site = serve()
    head = get("/echo", "Transfer-Encoding: chunked")
    with site.connect(head + before + b"zz\r\nabc\r\n0\r\n\r\n") as connection:
        answer = receive_answer(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"refused: the request's chunks are malformed" in answer
        assert is_closed(connection)
    with site.connect(get("/")) as other:
        assert receive_answer(other).endswith(b"ok")
    assert not warnings_of(caplog)


OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ")


@pytest.mark.parametrize("pieces", [1, 2, 0], ids=["at once", "body apart", "byte by byte"])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param(("Content-Length: 5",), b"hello", id="length"),
        pytest.param(("Transfer-Encoding: chunked",), b"5\r\nhello\r\n0\r\n\r\n", id="chunks"),
    ],
)
def test_offer_of_another_protocol_is_ignored(
    serve: Callable[..., Site],
    caplog: pytest.LogCaptureFixture,
    pieces: int,
    headers: tuple[str, ...],
    body: bytes,
) -> None:
    """Java's HttpClient and `curl --http2` offer HTTP/2, and go on in HTTP/1.1."""
    site = serve(max_running=None)
    head = get("/echo", *OFFER, *headers)
    parts = {1: [head + body], 2: [head, body], 0: [bytes([byte]) for byte in head + body]}[pieces]
    with site.connect() as connection:
        for _ in range(2):
            for part in parts:
                connection.sendall(part)
                time.sleep(0.02 if pieces == 2 else 0)
            assert receive_answer(connection).endswith(b"\r\n\r\nhello")
        connection.sendall((head + body) * 3)
        connection.sendall(get("/", *OFFER))
        received = b""
        while not received.endswith(b"ok") and (more := connection.recv(65536)):
            received += more
        assert received.count(b"\r\n\r\nhello") == 3
        assert received.endswith(b"ok")
    assert not warnings_of(caplog)


def test_head_with_an_offer_is_bounded_too(serve: Callable[..., Site]) -> None:
    site = serve(max_head_bytes=1000)
    with site.connect(get("/", *OFFER, "X: " + "x" * 2000)) as connection:
        assert receive_answer(connection).startswith(b"HTTP/1.1 431 ")
    with site.connect(get("/", "Connection: close, Upgrade", *OFFER[1:])) as connection:
        assert b"\r\nconnection: close\r\n" in receive_answer(connection)
        assert is_closed(connection)
    with site.connect(b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert receive_answer(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("headers", [("Connection: close",), ()], ids=["closes", "keeps alive"])
def test_answer_before_the_end_of_the_body_arrives(
    serve: Callable[..., Site], headers: tuple[str, ...]
) -> None:
    """Most clients send all of a body before they read; a connection closed at once would be reset."""
    site = serve()
    with site.connect(get("/", *headers, f"Content-Length: {LARGE_BYTES}")) as connection:
        for _ in range(LARGE_BYTES // 2**20):
            connection.sendall(bytes(2**20))
        assert receive_answer(connection).endswith(b"ok")
        if headers:
            assert is_closed(connection)
            eventually(lambda: site.connection_count == 1, "it is still there")
    eventually(lambda: site.connection_count == 0, "it has ended with the client's")


def test_client_that_sends_for_ever_is_cut_off(
    serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "_BODY_LINGER_S", 0.1)
    site = serve()
    with site.connect(get("/", "Connection: close", "Content-Length: 999999999")) as connection:
        connection.sendall(b"x")
        assert receive_answer(connection).endswith(b"ok")
        eventually(lambda: site.connection_count == 0, "it is cut off")


def test_next_request_may_take_its_time_while_the_one_before_runs(serve: Callable[..., Site]) -> None:
    site = serve(head_s=0.2)
    with site.connect(get("/hold") + get("/echo", "Content-Length: 4") + b"ab") as connection:
        eventually(lambda: site.holding_count == 1, "the first is under way")
        site.release.set()
        assert receive_answer(connection).endswith(b"ok")
        time.sleep(0.6)  # longer than a head may take
        connection.sendall(b"cd")
        assert receive_answer(connection).endswith(b"abcd")


@pytest.mark.parametrize("keep_alive_s", [30, 0])
def test_old_clients_keep_a_connection_if_they_ask_for_it(
    serve: Callable[..., Site], keep_alive_s: int
) -> None:
    """In HTTP/1.0, as `ab -k` does; without asking, a connection has one request."""
    site = serve(keep_alive_s=keep_alive_s)
    asking, plain = (
        b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
    )
    with site.connect() as connection:
        for _ in range(3 if keep_alive_s else 0):
            connection.sendall(asking)
            answer = receive_answer(connection)
            assert answer.endswith(b"ok")
            assert answer.count(b"connection: keep-alive\r\n") == answer.count(b"connection: ") == 1
        connection.sendall(plain if keep_alive_s else asking)
        assert b"\r\nconnection: close\r\n" in receive_answer(connection)
        assert is_closed(connection)


def test_without_keep_alive_a_connection_has_one_request(serve: Callable[..., Site]) -> None:
    site = serve(keep_alive_s=0)
    with site.connect(get("/") + get("/")) as connection:
        answer = receive_answer(connection)
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"ok")
        assert is_closed(connection)
