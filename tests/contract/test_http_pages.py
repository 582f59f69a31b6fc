"""Probes and strangers at the HTTP endpoint of a real server process."""

from __future__ import annotations

import http.client
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.scrape import get
from tests.support.server_process import ServerProcess, run_cli, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server: the endpoint has nothing to do with the transport."""
    with ServerProcess(repository, tmp_path_factory.mktemp("server")) as process:
        yield process


def connect(server: ServerProcess) -> socket.socket:
    host, _, port = server.http_address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer_to(server: ServerProcess, content: bytes) -> bytes:
    """Everything that comes back for ``content``, up to the end of the connection."""
    with connect(server) as connection:
        connection.sendall(content)
        received = b""
        while more := connection.recv(65536):
            received += more
    return received


def test_probes_are_answered(server: ServerProcess) -> None:
    assert get(server, "/healthz") == (200, "live\n")
    assert get(server, "/readyz?verbose") == (200, "ready\n")


def test_head_has_the_length_and_no_content(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection(server.http_address, timeout=20)
    connection.request("HEAD", "/readyz")
    response = connection.getresponse()
    assert (response.status, response.getheader("Content-Length"), response.read()) == (200, "6", b"")
    connection.close()


def test_an_unknown_path_lists_what_there_is(server: ServerProcess) -> None:
    answer = answer_to(server, b"GET /metric%1b HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert answer.endswith(b"\r\n\r\nno page '/metric\\x1b'; the pages are /healthz, /readyz, /metrics\n")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b"POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789", b"405", id="POST"),
        pytest.param(b"nonsense\r\n\r\n", b"400", id="no HTTP"),
        pytest.param(b"GET /healthz\r\n\r\n", b"400", id="HTTP 0.9"),
        pytest.param(b"GET /metric\x1b HTTP/1.1\r\n\r\n", b"400", id="escape"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400", id="gRPC"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b"431", id="large header"),
        pytest.param(b"GET /" + b"x" * 6000 + b" HTTP/1.1\r\n\r\n", b"404", id="long path"),
    ],
)
def test_invalid_http_requests_are_refused(server: ServerProcess, content: bytes, status: bytes) -> None:
    try:
        answer = answer_to(server, content)
    except ConnectionError:  # closed on the rest of what was too much
        answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 " + status)
    assert bool(answer) or len(content) > 10_000
    assert not answer or b"\r\ncache-control: no-store\r\n" in answer
    assert status != b"400" or answer.endswith(
        b"\r\n\r\nthis is not an HTTP/1.1 request; gRPC has another port\n"
    )
    assert len(answer) < 1000, "what a stranger sent is not sent back to him at length"
    assert get(server, "/healthz")[0] == 200
    assert "Traceback" not in server.log


def test_idle_connections_do_not_block_probes(server: ServerProcess) -> None:
    """Three times as many as are held at once, some in the middle of a request; each probe gets through."""
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(192)]
        for connection in silent[128::2]:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: he")
        assert get(server, "/healthz")[0] == 200
        assert get(server, "/metrics")[0] == 200
        assert silent[0].recv(1) == b"", "the oldest has given way"
    assert get(server, "/healthz")[0] == 200
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_endless_http_request_is_cut_off(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert connection.recv(1) == b""  # or the socket's own limit of 20 s raises


def test_readyz_names_versions_that_do_not_serve(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    network = TinyNetwork()
    network.publish(folder / "tiny")
    (network.publish(folder / "tiny") / "golden.npz").unlink()
    with ServerProcess(folder, tmp_path / "server") as server:
        status, text = get(server, "/readyz")
        assert (status, text) == (200, "ready\ntiny/2: golden.npz is missing from the version's folder\n")
        server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="tiny"))
        status, text = get(server, "/readyz")
        assert status == 503
        assert text.splitlines()[0] == "not ready: no model serves"
        assert "tiny/1: unloaded on request" in text
        assert get(server, "/healthz") == (200, "live\n"), "a restart would mend nothing"
        load = pb.RepositoryModelLoadRequest(model_name="tiny")
        status_of(lambda: server.stub.RepositoryModelLoad(load))  # version 2 is refused again
        assert get(server, "/readyz")[0] == 200


def test_http_endpoint_can_be_switched_off(tmp_path: Path, repository: Path) -> None:
    with ServerProcess(repository, tmp_path / "server", "--no-metrics") as server:
        server.infer(TinyNetwork(seed=2).random_images(1))
        assert not (tmp_path / "server" / "metrics-port").exists()
        assert "/readyz" not in server.log


def test_metrics_port_in_use_is_explained(server: ServerProcess, repository: Path) -> None:
    port = server.http_address.rpartition(":")[2]
    ended = run_cli("serve", "--repository", str(repository), "--port", "0", "--metrics-port", port)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} for metrics" in ended.stderr
    assert "--metrics-port" in ended.stderr
    assert "Traceback" not in ended.stderr
