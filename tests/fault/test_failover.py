"""Clients of several servers: the work is spread, and a server that is killed costs no caller an answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent import futures
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.client.async_client import AsyncClient
from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import InvalidArgumentError, UnavailableError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.pb import open_inference_pb2_grpc
from tests.support.artifacts import TinyNetwork
from tests.support.repository_changes import eventually
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

CALLERS = 8
CALLS = 50  # each caller's after the death of a server


@pytest.fixture
def network() -> TinyNetwork:
    return TinyNetwork()


@pytest.fixture
def pair(
    tmp_path: Path, network: TinyNetwork, transport: str
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two servers of one repository, as behind one name in a cluster."""
    network.publish(tmp_path / "models" / "tiny")
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(
                ServerProcess(tmp_path / "models", tmp_path / folder, "--transport", transport)
            )
            for folder in ("first", "second")
        )
        yield first, second


def addresses(pair: tuple[ServerProcess, ServerProcess]) -> str:
    return f"ipv4:{pair[0].address},{pair[1].address}"


def test_sync_client_spreads_calls_and_survives_the_death_of_a_server(
    pair: tuple[ServerProcess, ServerProcess], network: TinyNetwork
) -> None:
    """Calls go on until both servers have answered some, one is killed, and as many follow."""
    images = network.random_images(3)
    killed = threading.Event()
    with Client(addresses(pair)) as client, futures.ThreadPoolExecutor(CALLERS) as threads:

        def call_all(_: int) -> list[NDArray[np.float32]]:
            answers = []
            while not killed.is_set():
                answers.append(client.infer("tiny", images)["logits"])
            return answers + [client.infer("tiny", images)["logits"] for _ in range(CALLS)]

        answers = threads.map(call_all, range(CALLERS))
        try:
            eventually(lambda: all(answered(server) >= CALLERS for server in pair), "both have answered")
            before = answered(pair[1])
            pair[0].process.kill()
        finally:
            killed.set()
        for logits in (logits for own in answers for logits in own):
            assert np.abs(logits - network.logits(images)).max() < 1e-5
    assert answered(pair[1]) >= before + CALLERS * CALLS


def test_async_client_survives_the_death_of_a_server(
    pair: tuple[ServerProcess, ServerProcess], network: TinyNetwork
) -> None:
    images = network.random_images(3)
    killed = threading.Event()

    async def call_all() -> list[NDArray[np.float32]]:
        async with AsyncClient(addresses(pair)) as client:

            async def call(_: int) -> list[NDArray[np.float32]]:
                answers = []
                while not killed.is_set():
                    answers.append((await client.infer("tiny", images))["logits"])
                return answers + [(await client.infer("tiny", images))["logits"] for _ in range(CALLS)]

            callers = [asyncio.create_task(call(number)) for number in range(CALLERS)]
            await asyncio.to_thread(
                eventually, lambda: all(answered(server) for server in pair), "both have answered"
            )
            pair[0].process.kill()
            killed.set()
            return [logits for own in await asyncio.gather(*callers) for logits in own]

    for logits in asyncio.run(call_all()):
        assert np.abs(logits - network.logits(images)).max() < 1e-5


def answered(server: ServerProcess) -> int:
    """How many requests a server has answered; executions would depend on how they met."""
    statistics = server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny"), timeout=30)
    count: int = statistics.model_stats[0].inference_stats.success.count
    return count


class Reluctant(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Fails the first ``failures`` calls with ``code``."""

    def __init__(self, code: grpc.StatusCode, failures: int) -> None:
        self._code, self._failures = code, failures
        self.calls = 0

    def ModelInfer(  # noqa: N802  # the protocol's name
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        self.calls += 1
        if self.calls <= self._failures:
            context.abort(self._code, "not now")
        logits = np.zeros((1, 10), np.float32)
        return pb.ModelInferResponse(
            model_name=request.model_name,
            outputs=[{"name": "logits", "datatype": "FP32", "shape": logits.shape}],
            raw_output_contents=[logits.tobytes()],
        )


@contextlib.contextmanager
def reluctant(code: grpc.StatusCode, failures: int) -> Iterator[tuple[Reluctant, Client]]:
    servicer = Reluctant(code, failures)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # generated
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            yield servicer, client
    finally:
        server.stop(0).wait()


IMAGES = np.zeros((1, 1, 8, 8), np.uint8)


def test_unavailable_calls_are_retried() -> None:
    with reluctant(grpc.StatusCode.UNAVAILABLE, failures=2) as (servicer, client):
        assert client.infer("tiny", IMAGES)["logits"].shape == (1, 10)
    assert servicer.calls == 3


def test_retries_end_if_the_server_stays_unavailable() -> None:
    with (
        reluctant(grpc.StatusCode.UNAVAILABLE, failures=100) as (servicer, client),
        pytest.raises(UnavailableError, match="not now"),
    ):
        client.infer("tiny", IMAGES)
    assert servicer.calls == 4


def test_invalid_requests_are_not_retried() -> None:
    with (
        reluctant(grpc.StatusCode.INVALID_ARGUMENT, failures=1) as (servicer, client),
        pytest.raises(InvalidArgumentError),
    ):
        client.infer("tiny", IMAGES)
    assert servicer.calls == 1
