"""What reaches the wire itself: garbage, open streams at the end, transports that are not there."""

from __future__ import annotations

import queue
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, infer_request, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyNetwork().publish(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, transport: str
) -> Iterator[ServerProcess]:
    with ServerProcess(repository, tmp_path_factory.mktemp("server"), "--transport", transport) as process:
        yield process


def assert_serves(server: ServerProcess) -> None:
    network = TinyNetwork()
    images = network.random_images(2)
    assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", id="HTTP/1.1"),
        pytest.param(b"\x00" * 5000, id="zeros"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000, id="bad frames"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_server_survives_bytes_that_are_not_grpc(server: ServerProcess, content: bytes) -> None:
    host, _, port = server.address.rpartition(":")
    connections = [socket.create_connection((host, int(port))) for _ in range(20)]
    for connection in connections:
        connection.sendall(content)
    assert_serves(server)
    for connection in connections:
        connection.close()
    assert_serves(server)
    assert "Traceback" not in server.log


def test_open_stream_is_answered_and_ends_with_the_server(
    repository: Path, tmp_path: Path, transport: str
) -> None:
    """An idle stream must not hold up the end for the whole grace period."""
    requests: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()
    with ServerProcess(repository, tmp_path / "server", "--transport", transport) as server:
        answers = server.stub.ModelStreamInfer(iter(requests.get, None))
        requests.put(infer_request(TinyNetwork().random_images(3)))
        assert not next(answers).error_message
        server.process.send_signal(signal.SIGTERM)
        code, text = status_of(lambda: next(answers))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "draining" in text
        assert server.process.wait(timeout=20) == 0  # well before the grace period of 30 s
        requests.put(None)
        assert "Traceback" not in server.log


def test_cancelled_streams_do_not_affect_other_callers(server: ServerProcess) -> None:
    for _ in range(5):
        many = (infer_request(TinyNetwork().random_images(500)) for _ in range(100))
        answers = server.stub.ModelStreamInfer(many)
        next(answers)
        answers.cancel()
    assert_serves(server)
    assert "Traceback" not in server.log


def test_statistics_count_the_requests_of_both_transports(server: ServerProcess) -> None:
    """What native passes on reaches the same server: it counts the inference that native took itself."""

    def counted() -> int:
        (entry,) = server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")).model_stats
        return int(entry.inference_count)

    def settled() -> int:
        """Wait for what cancelled streams have left to run."""
        count, before = counted(), -1
        while count != before:
            time.sleep(0.3)
            count, before = counted(), count
        return count

    before = settled()
    assert_serves(server)
    assert counted() - before == 2


def test_transport_that_is_not_installed_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from foldserve.serving.errors import TransportMissingError
    from foldserve.serving.transport.backend import Backend
    from foldserve.serving.transport.base import open_transport

    # An earlier test may have imported the module already; it has to be imported here, without the package.
    monkeypatch.delitem(sys.modules, "foldserve.serving.transport.native", raising=False)
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    backend = Backend(None, None, None)  # type: ignore[arg-type]  # not reached
    with pytest.raises(TransportMissingError, match="foldserve\\[native\\]"):
        open_transport("native", backend, None)  # type: ignore[arg-type]
