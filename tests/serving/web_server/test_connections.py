"""Which connection is closed if there are too many, and what happens without a free descriptor."""

from __future__ import annotations

import asyncio
import errno
import ssl
from typing import TYPE_CHECKING, Any

from foldserve.serving.security.certificate import ServerCredentials
from foldserve.serving.web_server import connections
from tests.serving.web_server.conftest import closing, get, is_closed, receive_answer, warnings_of
from tests.support.certificates import Authority
from tests.support.repository_changes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from tests.serving.web_server.conftest import Site


def test_oldest_connection_without_a_request_gives_way(serve: Callable[..., Site]) -> None:
    site = serve(max_connections=4)
    silent = [site.connect(b"GET / HT" if number % 2 else b"") for number in range(4)]
    eventually(lambda: site.connection_count == 4, "all are accepted")
    with closing(*silent), site.connect(get("/")) as newest:
        assert receive_answer(newest).endswith(b"ok")
        assert is_closed(silent[0])
        silent[2].sendall(get("/"))
        assert receive_answer(silent[2]).endswith(b"ok"), "the others are kept"


def test_connections_that_have_asked_outlive_silent_ones(serve: Callable[..., Site]) -> None:
    site = serve(max_connections=3)
    with site.connect(get("/")) as asked:
        assert receive_answer(asked).endswith(b"ok")
        for _ in range(20):
            silent = site.connect()
            with closing(silent), site.connect(get("/", "Connection: close")) as other:
                assert receive_answer(other).endswith(b"ok")
        asked.sendall(get("/"))
        assert receive_answer(asked).endswith(b"ok")


def test_connection_idle_longest_gives_way(serve: Callable[..., Site]) -> None:
    site = serve(max_connections=3)
    idle = [site.connect() for _ in range(3)]
    with closing(*idle):
        for number in (0, 1, 2, 0):
            idle[number].sendall(get("/"))
            assert receive_answer(idle[number]).endswith(b"ok")
        with site.connect(get("/")) as newest:
            assert receive_answer(newest).endswith(b"ok")
            assert is_closed(idle[1])
            idle[0].sendall(get("/"))  # which came first, and has asked again
            assert receive_answer(idle[0]).endswith(b"ok")


def test_running_requests_are_kept_and_further_ones_are_refused(serve: Callable[..., Site]) -> None:
    site = serve(max_connections=4, max_running=2)
    running = [site.connect(get("/hold")) for _ in range(2)]
    with closing(*running):
        eventually(lambda: site.holding_count == 2, "both are under way")
        for _ in range(5):
            silent = site.connect()
            with closing(silent), site.connect(get("/")) as refused:
                answer = receive_answer(refused)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nretry-after: 1\r\n" in answer
                assert answer.endswith(
                    b"refused: 2 requests are under way, and no more are accepted; try again"
                )
                assert is_closed(refused)
        site.release.set()
        for connection in running:
            assert receive_answer(connection).endswith(b"ok")
    with site.connect(get("/")) as later:
        assert receive_answer(later).endswith(b"ok")


def test_new_connection_is_closed_if_all_others_have_a_request_under_way(serve: Callable[..., Site]) -> None:
    """As with one connection in all, when descriptors are very scarce."""
    site = serve(max_connections=1, max_running=1)
    with site.connect(get("/hold")) as running:
        eventually(lambda: site.holding_count == 1, "it is under way")
        with site.connect() as further:
            assert is_closed(further)
        site.release.set()
        assert receive_answer(running).endswith(b"ok")


def test_running_request_gives_way_if_there_is_nothing_else(serve: Callable[..., Site]) -> None:
    site = serve(max_connections=2, max_running=None)
    running = []
    for number in (1, 2):
        running.append(site.connect(get("/hold")))
        eventually(lambda number=number: site.holding_count == number, "it is under way")
    with closing(*running), site.connect(get("/")) as newest:
        assert receive_answer(newest).endswith(b"ok")
        assert is_closed(running[0])
        site.release.set()
        assert receive_answer(running[1]).endswith(b"ok")


def test_unfinished_handshakes_of_tls_give_way(serve: Callable[..., Site], tmp_path: Path) -> None:
    authority = Authority(tmp_path, "own")
    site = serve(credentials=ServerCredentials(*authority.sign("server")), max_connections=2)
    context = ssl.create_default_context(cafile=str(authority.ca))
    silent = [site.connect(b"\x16\x03\x01" if number % 2 else b"") for number in range(5)]
    with closing(*silent):
        for _ in range(3):
            with (
                site.connect() as plain,
                context.wrap_socket(plain, server_hostname="localhost") as secured,
            ):
                secured.sendall(get("/"))
                assert receive_answer(secured).endswith(b"ok")
        assert is_closed(silent[0])


def test_port_with_tls_says_so_to_clients_without_it(
    serve: Callable[..., Site], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path, "own")
    site = serve(credentials=ServerCredentials(*authority.sign("server")), head_s=0.3)
    with site.connect(get("/hold", "Authorization: Bearer secret")) as plain:
        answer = receive_answer(plain)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b"refused: this port speaks TLS; call it with https://")
        assert is_closed(plain)
    assert site.holding_count == 0, "it was not passed on"
    for content in (b"", b"\x16", b"G"):  # and no more
        with site.connect(content) as silent:
            assert is_closed(silent)
    assert not warnings_of(caplog)


def test_one_attempt_follows_each_that_found_no_descriptor(
    serve: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio's own server would log each and double its attempts each time."""
    attempts: list[str] = []
    accept = asyncio.SelectorEventLoop.sock_accept

    async def fail_at_first(loop: Any, listener: Any) -> Any:
        attempts.append("accept")
        if len(attempts) <= 20:
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(loop, listener)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_accept", fail_at_first)
    monkeypatch.setattr(connections, "_ACCEPT_AGAIN_S", 0.001)
    site = serve()
    with site.connect(get("/")) as connection:
        assert receive_answer(connection).endswith(b"ok")
    assert 21 <= len(attempts) <= 22, "the last one waits for the next connection"
    assert not warnings_of(caplog)
