"""A process with few file descriptors answers good callers whatever others hold open."""

from __future__ import annotations

import socket
import time
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.client.sync_client import Client
from tests.support.artifacts import TinyNetwork
from tests.support.http_calls import call, json_body
from tests.support.server_process import ServerProcess, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NETWORK = TinyNetwork()
# A client's first bytes: the preface and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture
def server(tmp_path: Path, transport: str) -> Iterator[ServerProcess]:
    NETWORK.publish(tmp_path / "models" / "tiny")
    module = "tests.support.few_descriptors_server"
    with ServerProcess(
        tmp_path / "models", tmp_path / "server", "--transport", transport, module=module
    ) as process:
        yield process


def connect(address: str, content: bytes) -> socket.socket:
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(content)
    return connection


def assert_answers(server: ServerProcess) -> None:
    """Over a connection of its own, as a caller who comes now, and to a probe."""
    images = NETWORK.random_images(2)
    with Client(server.address, connect_timeout_s=20.0) as client:
        assert np.abs(client.infer("tiny", images)["logits"] - NETWORK.logits(images)).max() < 1e-5
    with urllib.request.urlopen(f"http://{server.http_address}/healthz", timeout=20) as page:
        assert page.status == 200


@pytest.mark.parametrize("content", [pytest.param(PREFACE, id="HTTP/2"), pytest.param(b"", id="silent")])
def test_idle_connections_are_closed_for_callers(server: ServerProcess, content: bytes) -> None:
    images = NETWORK.random_images(2)
    server.infer(images)
    lines_before = server.log.count("\n")
    with ExitStack() as held:
        for _ in range(150):
            held.enter_context(connect(server.address, content))
        for _ in range(5):
            assert_answers(server)
        # Whoever has asked something is kept, however long ago it was.
        assert np.abs(outputs_of(server.infer(images))["logits"] - NETWORK.logits(images)).max() < 1e-5
    assert_answers(server)
    assert server.log.count("\n") - lines_before < 20, server.log
    assert server.log.count("file descriptors are free") == 1
    assert "ulimit -n" in server.log
    assert "Traceback" not in server.log


def test_connection_of_a_pending_call_is_kept(server: ServerProcess) -> None:
    """A watcher of health hears nothing for long, and is not the one who gives way."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(server.address) as channel, ExitStack() as held:
        statuses = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=300)
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        for _ in range(100):
            held.enter_context(connect(server.address, PREFACE))
        assert_answers(server)
        server.process.terminate()
        assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_idle_connections_to_the_probe_port_are_closed(server: ServerProcess) -> None:
    lines_before = server.log.count("\n")
    with ExitStack() as held:
        for _ in range(150):
            held.enter_context(connect(server.http_address, b"GET"))
        assert_answers(server)
    assert_answers(server)
    assert server.log.count("\n") - lines_before < 20, server.log


def test_idle_connections_to_the_rest_port_are_closed(tmp_path: Path) -> None:
    """Nobody logs each attempt to accept one, and the other ports are answered."""
    NETWORK.publish(tmp_path / "models" / "tiny")
    module = "tests.support.few_descriptors_server"
    with ServerProcess(tmp_path / "models", tmp_path / "server", "--http", module=module) as server:
        images = NETWORK.random_images(1)
        lines_before = server.log.count("\n")
        with ExitStack() as held:
            for number in range(150):
                held.enter_context(connect(server.api_address, b"GET" if number % 2 else b""))
            for _ in range(3):
                assert_answers(server)
                assert call(server.api_address, "/v2/models/tiny/infer", json_body(images)).status == 200
        assert server.log.count("\n") - lines_before < 20, server.log
        assert "Traceback" not in server.log


def test_new_models_load_while_descriptors_are_short(server: ServerProcess, tmp_path: Path) -> None:
    """The reserve is for loading what appears, too."""
    other = TinyNetwork(seed=7)
    with ExitStack() as held:
        for _ in range(100):
            held.enter_context(connect(server.address, PREFACE))
        other.publish(tmp_path / "models" / "other")
        give_up_s = time.monotonic() + 60
        while "other/1 ready" not in server.log:
            assert time.monotonic() < give_up_s, server.log
            time.sleep(0.05)
        images = other.random_images(1)
        logits = outputs_of(server.infer(images, "other"))["logits"]
        assert np.abs(logits - other.logits(images)).max() < 1e-5
