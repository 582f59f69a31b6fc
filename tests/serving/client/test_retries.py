"""What both clients promise of retries and deadlines, against a gRPC server that fails as it is told."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from foldserve import AsyncClient, Client
from foldserve.serving.errors import DeadlineExceededError, InvalidArgumentError, UnavailableError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.pb import open_inference_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = np.zeros((1, 1, 2, 2), np.uint8)
ATTEMPTS = 4


class Failing(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Fails the first ``failures`` calls with ``status``, or answers none while it ``hangs``."""

    def __init__(self) -> None:
        self.failures = 0
        self.status = grpc.StatusCode.UNAVAILABLE
        self.hangs = False
        self.ended = threading.Event()
        self.call_count = 0

    def _fail(self, context: grpc.ServicerContext) -> None:
        self.call_count += 1
        if self.hangs:
            self.ended.wait()
        if self.call_count <= self.failures:
            context.abort(self.status, "as it was told")

    def ModelInfer(self, request: Any, context: Any) -> pb.ModelInferResponse:  # noqa: N802  # the protocol's name
        self._fail(context)
        return pb.ModelInferResponse(model_name=request.model_name)

    def RepositoryIndex(self, _: Any, context: Any) -> pb.RepositoryIndexResponse:  # noqa: N802
        self._fail(context)
        return pb.RepositoryIndexResponse()


@pytest.fixture
def failing() -> Failing:
    return Failing()


@pytest.fixture
def address(failing: Failing) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(failing, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    failing.ended.set()
    server.stop(None).wait()


def infer(address: str, *, is_async: bool, timeout_s: float = 60.0) -> None:
    async def ask() -> None:
        async with AsyncClient(address, timeout_s=timeout_s) as client:
            await client.infer("m", IMAGES)

    if is_async:
        asyncio.run(ask())
        return
    with Client(address, timeout_s=timeout_s) as client:
        client.infer("m", IMAGES)


@pytest.mark.parametrize("is_async", [False, True], ids=["Client", "AsyncClient"])
def test_an_unavailable_server_is_asked_again(failing: Failing, address: str, is_async: bool) -> None:
    failing.failures = ATTEMPTS - 1
    infer(address, is_async=is_async)
    assert failing.call_count == ATTEMPTS


@pytest.mark.parametrize("is_async", [False, True], ids=["Client", "AsyncClient"])
def test_a_server_that_stays_unavailable_is_given_up(failing: Failing, address: str, is_async: bool) -> None:
    failing.failures = 1000
    with pytest.raises(UnavailableError, match="as it was told"):
        infer(address, is_async=is_async)
    assert failing.call_count == ATTEMPTS


@pytest.mark.parametrize("is_async", [False, True], ids=["Client", "AsyncClient"])
def test_other_statuses_are_final(failing: Failing, address: str, is_async: bool) -> None:
    failing.failures, failing.status = 1, grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(InvalidArgumentError):
        infer(address, is_async=is_async)
    assert failing.call_count == 1


def test_the_index_is_asked_for_once(failing: Failing, address: str) -> None:
    failing.failures = 1
    with Client(address) as client, pytest.raises(UnavailableError):
        client.index()
    assert failing.call_count == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["Client", "AsyncClient"])
def test_a_call_ends_at_its_deadline(failing: Failing, address: str, is_async: bool) -> None:
    failing.hangs = True
    with pytest.raises(DeadlineExceededError):
        infer(address, is_async=is_async, timeout_s=0.5)
