"""Compares the code of foldserve's transports with the least that can stand between a library and a service.

No socket, no model: the library is replaced by a list of received calls and a place for the answers, and the
service answers at once. So what is measured is the transport's own Python, in given batches, on one thread:
a small part of a request, whose changes are lost in the noise of a whole server.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.regression.in_process import message_of, ratio_of_costs
from benchmarks.regression.slowed_server import burn
from benchmarks.serving.bare_model import METHOD, infer
from benchmarks.serving.errors import BenchError
from foldserve.runtime.session import Session
from foldserve.serving.config import ServeConfig
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.server_state import Lifecycle, ServerState
from foldserve.serving.services.inference import InferenceService
from foldserve.serving.services.management import ManagementService
from foldserve.serving.services.requests import TensorRequest
from foldserve.serving.transport.backend import Backend
from foldserve.serving.transport.grpcio.server import GrpcioTransport
from foldserve.serving.transport.settings import wire_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from benchmarks.serving.networks import Network
    from foldserve.serving.services.inference import OnReply
    from foldserve.serving.services.requests import InferenceRequest

_BATCH = 32
# Batches per call that is timed: one takes some hundred microseconds.
_BATCHES = 8
_PEER = "ipv4:127.0.0.1:50000"


class _InstantService(InferenceService):
    """Answers every request at once with the same bytes, after ``planted_us`` of CPU time."""

    def __init__(self, answer: bytes, planted_us: float) -> None:
        self.logs_requests = False
        self._answer, self._planted_us = answer, planted_us

    def submit(
        self, requests: Sequence[InferenceRequest], on_reply: OnReply, *, run_inline: bool = False
    ) -> None:
        del run_inline
        if self._planted_us:
            burn(self._planted_us * len(requests))
        for request in requests:
            request.message = None
            on_reply(request, self._answer)


class _Front:
    """What pygrpc-native's front looks like from Python: it hands out calls, and takes answers."""

    bound_port = 0

    def __init__(self, *_: object, **__: object) -> None:
        self.answered = 0
        self._batches: list[list[Any]] = []

    def receive(self, batches: Sequence[list[Any]]) -> None:
        """Let the next reader have ``batches``, one after the other, and then the end."""
        self._batches = list(batches)

    def recv_batch_details(self, _: int) -> list[Any] | None:
        """Return the next batch, None at the end."""
        return self._batches.pop() if self._batches else None

    recv_batch = recv_batch_details

    def respond(self, _: int, __: bytes) -> None:
        """Take an answer."""
        self.answered += 1

    def fail(self, _: int, status: int, text: str) -> None:
        """Take a refusal, which there must be none of."""
        raise BenchError(f"foldserve refuses the benchmark's request: status {status}, {text}")


@contextmanager
def native(network: Network, planted_us: float) -> Iterator[Callable[[float], float]]:
    """Open the native transport and the bare loop for the block; yield a function that measures one ratio.

    Raises:
        BenchError: pygrpc-native is missing, or calls were refused or not answered.
    """
    try:
        from pygrpc_native import EVENT_CALL  # noqa: PLC0415  # an extra that may be missing

        from foldserve.serving.transport import native as transport  # noqa: PLC0415
    except ImportError as error:
        raise BenchError(f"needs pygrpc-native: {error}") from None
    message = message_of(network, 1)
    answer = _answer(network, message)
    fronts: list[_Front] = []

    def make_front(*arguments: object, **named: object) -> _Front:
        fronts.append(_Front(*arguments, **named))
        return fronts[-1]

    library: Any = vars(transport)["NativeGrpcFront"]
    vars(transport)["NativeGrpcFront"] = make_front
    try:
        listener = transport._Listener(  # its only reader of calls
            "127.0.0.1:0", _InstantService(answer, planted_us), _settings(network)
        )
    finally:
        vars(transport)["NativeGrpcFront"] = library
    # The reader itself, on this thread.
    listener._receiver = threading.current_thread()
    (front,) = fronts
    details = ((), _PEER, None)
    calls = [(EVENT_CALL, number, 0, message, None, details) for number in range(_BATCH)]
    bare_front = _Front()
    bare_calls = [call[:5] for call in calls]

    def ours() -> None:
        front.receive([calls] * _BATCHES)
        listener._receive()

    def bare() -> None:
        bare_front.receive([bare_calls] * _BATCHES)
        while (events := bare_front.recv_batch(_BATCH)) is not None:
            received = [(call_id, payload) for kind, call_id, _, payload, _ in events if kind == EVENT_CALL]
            for call_id, payload in received:
                pb.ModelInferRequest.FromString(payload)
                bare_front.respond(call_id, answer)

    ours()
    bare()
    if not front.answered == bare_front.answered == _BATCH * _BATCHES:
        raise BenchError(f"{front.answered} of {_BATCH * _BATCHES} calls were answered")
    yield lambda cpu_s: ratio_of_costs(ours, bare, cpu_s)


class _Context:
    """What a handler asks of a call of grpc.aio."""

    def peer(self) -> str:
        return _PEER

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()


@contextmanager
def grpcio(network: Network, planted_us: float) -> Iterator[Callable[[float], float]]:
    """Open the grpcio transport and a bare handler for the block; yield a function that measures one ratio.

    Raises:
        BenchError: calls were not answered.
    """
    message = message_of(network, 1)
    answer = _answer(network, message)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        async def open_transport() -> GrpcioTransport:
            repository = ModelRepository(network.repository, _config(network).model_defaults)
            lifecycle = Lifecycle()
            lifecycle.enter(ServerState.READY)
            management = ManagementService(repository, lifecycle, model_control=False)
            service = _InstantService(answer, planted_us)
            return GrpcioTransport(Backend(service, management, lifecycle), _settings(network))

        transport = runner.run(open_transport())
        context: Any = _Context()
        handler = transport._unary_method(METHOD, TensorRequest)

        async def bare_handler(content: bytes, _: Any) -> bytes:
            pb.ModelInferRequest.FromString(content)
            future: asyncio.Future[bytes] = loop.create_future()
            if not waiting:
                loop.call_soon_threadsafe(deliver)
            waiting.append(future)
            return await future

        waiting: list[asyncio.Future[bytes]] = []

        def deliver() -> None:
            for future in waiting:
                future.set_result(answer)
            waiting.clear()

        async def call(one: Callable[[bytes, Any], Awaitable[bytes]]) -> list[bytes]:
            answers = []
            for _ in range(_BATCHES):
                answers += await asyncio.gather(*(one(message, context) for _ in range(_BATCH)))
            return answers

        for each in (handler, bare_handler):
            if runner.run(call(each)) != [answer] * (_BATCH * _BATCHES):
                raise BenchError("calls were not answered, or otherwise than they should be")
        yield lambda cpu_s: ratio_of_costs(
            lambda: runner.run(call(handler)), lambda: runner.run(call(bare_handler)), cpu_s
        )
        runner.run(transport.close())


def _config(network: Network) -> ServeConfig:
    return ServeConfig(repository=network.repository, device="cpu", intra_op_threads=1)


def _settings(network: Network) -> Any:
    config = _config(network)
    repository = ModelRepository(network.repository, config.model_defaults)
    return wire_settings(config, repository.index, max_connections=64)


def _answer(network: Network, message: bytes) -> bytes:
    session = Session(network.model_file.read_bytes(), device="cpu", intra_op_threads=1)
    (response,) = infer(session, [pb.ModelInferRequest.FromString(message)])
    return response.SerializeToString()
