"""The servicer over grpc.aio: the reference transport.

The only place where serving's errors become gRPC statuses.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.errors import InvalidArgumentError, ServingError
from serving.pb import open_inference_pb2 as pb
from serving.servicer import InferCall, Reply, Servicer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Method: TypeAlias = "Callable[[bytes, _Context], Awaitable[Message]]"
_M = TypeVar("_M", bound="Message")

SERVICE = "inference.GRPCInferenceService"
# Long enough for calls that are on their way to arrive and be refused properly, short beside any restart.
_QUIET_S = 0.2
INTERNAL_ERROR_TEXT = "internal error; the server's log has the details"

_log = logging.getLogger(__name__)


class ListenError(ServingError):
    """The address cannot be listened on."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Call(InferCall):
    """A call that a coroutine waits for."""

    reply: asyncio.Future[Reply]


class GrpcioTransport:
    """A grpc.aio server with inference, health and reflection. Every method runs on its event loop.

    Args:
        servicer: what answers.
        max_message_bytes: largest request taken; gRPC answers RESOURCE_EXHAUSTED to more, before it is held
            in memory.
    """

    def __init__(self, servicer: Servicer, *, max_message_bytes: int) -> None:
        self._servicer = servicer
        self._loop = asyncio.get_running_loop()
        self._finished: deque[tuple[_Call, Reply]] = deque()
        self._wake_up_pending = False
        self._running_count = 0
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=(
                # Two servers on one port must be an error, not a split of the traffic.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_message_bytes),
                # A response is bounded by its request's rows; a limit here would fail after the work is done.
                ("grpc.max_send_message_length", -1),
            )
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: the operating system's choice where ``port`` is 0.

        Raises:
            ListenError: the address is taken or not this machine's.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ListenError(
                f"cannot listen on {address}: the port is taken by another server, or the address is not "
                "this "
                "machine's; choose others with --port and --host"
            ) from error
        await self._server.start()
        return bound

    async def set_health(self, service: str, *, serving: bool) -> None:
        """Publish the health of a service ("" for the whole server) to Check and Watch."""
        status = health_pb2.HealthCheckResponse
        await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def enter_shutdown(self) -> None:
        """Publish NOT_SERVING for everything, for good."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Wait up to ``grace_s`` seconds for the running calls, then close; the rest are cancelled.

        Call it once the servicer refuses new calls. gRPC's own stop cancels calls that have arrived but not
        yet been taken up, so it comes only after a quiet moment.
        """
        give_up_s = self._loop.time() + grace_s
        quiet_until_s = self._loop.time() + _QUIET_S
        while self._loop.time() < min(quiet_until_s, give_up_s):
            await asyncio.sleep(_QUIET_S / 10)
            if self._running_count:
                quiet_until_s = self._loop.time() + _QUIET_S
        await self._server.stop(max(0.0, give_up_s - self._loop.time()))

    def _handlers(self) -> grpc.GenericRpcHandler:
        # Messages are parsed here and not by gRPC, which would answer UNKNOWN without a word to bytes that
        # are none.
        handlers = {
            name: _unary(self._control_method(request_type, answer))
            for name, (request_type, answer) in self._servicer.control.items()
        }
        handlers["ModelInfer"] = _unary(self._model_infer)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _control_method(self, request_type: type[Message], answer: Callable[..., Message]) -> _Method:
        async def method(content: bytes, context: _Context) -> Message:
            try:
                return answer(_parse(request_type, content))
            except Exception as error:  # becomes a status, and is logged where unknown
                await _abort(context, error)

        return method

    async def _model_infer(self, content: bytes, context: _Context) -> pb.ModelInferResponse:
        try:
            reply = await self._infer(content, context.time_remaining())
        except Exception as error:  # as above
            reply = error
        if isinstance(reply, Exception):
            await _abort(context, reply)
        return reply

    async def _infer(self, content: bytes, remaining_s: float | None) -> Reply:
        call = _Call(
            message=_parse(pb.ModelInferRequest, content),
            deadline_s=math.inf if remaining_s is None else time.monotonic() + remaining_s,
            reply=self._loop.create_future(),
        )
        self._running_count += 1
        try:
            self._servicer.submit((call,), self._on_reply)
            return await call.reply
        except asyncio.CancelledError:  # the caller hung up, or its deadline passed
            call.cancelled = True
            raise
        finally:
            self._running_count -= 1

    def _on_reply(self, call: InferCall, reply: Reply) -> None:
        """Hand a reply to the event loop, from any thread; one wake-up for all that come before it runs."""
        assert isinstance(call, _Call)
        self._finished.append((call, reply))
        if not self._wake_up_pending:
            self._wake_up_pending = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Cleared before looking: a reply appended by a thread that saw it set is then still found below.
        self._wake_up_pending = False
        while self._finished:
            call, reply = self._finished.popleft()
            if not call.reply.done():
                call.reply.set_result(reply)


def _unary(method: _Method) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(
        method, response_serializer=lambda message: message.SerializeToString()
    )


def _parse(message_type: type[_M], content: bytes) -> _M:
    try:
        return message_type.FromString(content)
    except DecodeError:
        raise InvalidArgumentError(
            f"the {len(content)} bytes received are no {message_type.DESCRIPTOR.full_name} message; is the "
            "client "
            "made from another definition of the protocol?"
        ) from None


async def _abort(context: _Context, error: Exception) -> NoReturn:
    if isinstance(error, ServingError) and error.status != "INTERNAL":
        await context.abort(grpc.StatusCode[error.status], str(error))
    _log.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_ERROR_TEXT)
    raise AssertionError("abort always raises")
