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


def test_garbage_behind_a_running_request_ends_the_connection(
    serve: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = serve()
    with site.connect(get("/hold")) as connection:
        eventually(lambda: site.holding_count == 1, "it is under way")
        connection.sendall(b"\x00" * 50)
        assert is_closed(connection)
    site.release.set()
    with site.connect(get("/")) as other:
        assert receive_answer(other).endswith(b"ok")
    assert not warnings_of(caplog)


def test_without_keep_alive_a_connection_has_one_request(serve: Callable[..., Site]) -> None:
    site = serve(keep_alive_s=0)
    with site.connect(get("/") + get("/")) as connection:
        answer = receive_answer(connection)
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"ok")
        assert is_closed(connection)
