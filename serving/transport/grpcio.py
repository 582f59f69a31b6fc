"""The servicer over grpc.aio: the reference transport, and what the native one leaves to it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.background import run_in_thread
from serving.errors import ListenError
from serving.servicer import CLASSIFIER_SERVICE, INFERENCE_SERVICE, UNARY_CALLS
from serving.transport.health import Health
from serving.transport.quiet import until_quiet
from serving.transport.streams import STREAMS, answer_in_order
from serving.transport.wire import parse, to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from serving.calls import Call, Reply
    from serving.control import Control, ControlMethod
    from serving.servicer import Servicer
    from serving.transport.streams import StreamMethod

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Method: TypeAlias = "Callable[[bytes, _Context], Awaitable[bytes]]"

_HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# For what is left once everything accepted is answered: streams that end by themselves, and refusals.
_LEAVING_S = 1.0
_POLL_S = 0.02


class GrpcioTransport:
    """A grpc.aio server with inference, control, health and reflection. Every method runs on its event loop.

    Args:
        servicer: what answers inference.
        control: what answers the rest.
        max_message_bytes: largest request taken. Up to twice that is refused in our words; more is refused by
            gRPC in its own, with the same status, before it is held in memory.
    """

    name = "grpcio"

    def __init__(self, servicer: Servicer, control: Control, *, max_message_bytes: int) -> None:
        self._servicer = servicer
        self._control = control
        self._max_message_bytes = max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._finished: deque[tuple[Call, Reply]] = deque()
        self._wake_up_pending = False
        self._running_count = 0  # calls that came before the drain
        self._last_call_s = 0.0
        self._draining = asyncio.Event()
        self._closing = False
        self._closed = asyncio.Event()
        self._health = Health()
        self._server = grpc.aio.server(
            options=(
                # Two servers on one port must be an error, not a split of the traffic.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", 2 * max_message_bytes),
                # Clients may look every ten seconds whether a quiet connection lives; gRPC's own limit of
                # five minutes would close on them.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                # A response is bounded by its request's rows; a limit here would fail after the work is done.
                ("grpc.max_send_message_length", -1),
            )
        )
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (INFERENCE_SERVICE, CLASSIFIER_SERVICE, _HEALTH_SERVICE, reflection.SERVICE_NAME),
            self._server,
        )

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: the operating system's choice where ``port`` is 0.

        Raises:
            ListenError: the address is taken or not this machine's.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return await self.listen(address)

    async def listen(self, address: str) -> int:
        """Listen on an address as gRPC writes it, such as "unix:/path"; raises as `start`."""
        try:
            bound: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ListenError(cannot_listen(address)) from error
        await self._server.start()
        return bound

    async def publish_health(self) -> None:
        """Tell Check and Watch what is true now of the server and each model."""
        self._health.publish(self._control.health())

    async def enter_shutdown(self) -> None:
        """Publish NOT_SERVING for everything, for good."""
        self._health.enter_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Wait up to ``grace_s`` seconds for the running calls, then close; the rest are cancelled.

        Call it once the servicer refuses new calls. Streams end when what they asked is answered. gRPC's own
        stop answers CANCELLED to calls that have arrived but not yet been taken up, so it comes after a quiet
        moment; and because callers who are refused may try again at once, the last refusals are held back
        until gRPC has told the connections to send no more.
        """
        self._draining.set()
        give_up_s = time.monotonic() + grace_s
        while self._running_count and time.monotonic() < give_up_s:
            await asyncio.sleep(_POLL_S)
        self._closing = True
        await until_quiet(lambda: self._running_count > 0, lambda: self._last_call_s, give_up_s)
        self._health.close()
        stopping = asyncio.ensure_future(self._server.stop(_LEAVING_S))
        await asyncio.sleep(0)  # it has begun: connections are told to send no more
        self._closed.set()
        await stopping

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        # Messages are parsed here and not by gRPC, which would answer UNKNOWN without a word to bytes that
        # are none.
        by_path: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{INFERENCE_SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(self._control_method(method))
            for name, method in self._control.methods.items()
        }
        for path, kind in UNARY_CALLS.items():
            by_path[path] = grpc.unary_unary_rpc_method_handler(self._unary_method(kind))
        for path, stream in STREAMS.items():
            by_path[path] = grpc.stream_stream_rpc_method_handler(self._stream_method(stream))
        handlers = []
        for service in (INFERENCE_SERVICE, CLASSIFIER_SERVICE):
            prefix = f"/{service}/"
            own = {
                path.removeprefix(prefix): handler
                for path, handler in by_path.items()
                if path.startswith(prefix)
            }
            handlers.append(grpc.method_handlers_generic_handler(service, own))
        return handlers

    def _control_method(self, method: ControlMethod) -> _Method:
        async def answer(content: bytes, context: _Context) -> bytes:
            running = await self._enter()
            try:
                request = parse(method.request_type, content, self._max_message_bytes)
                if not method.is_slow:
                    return method.answer(request).SerializeToString()
                try:
                    response: Message = await run_in_thread(lambda: method.answer(request), "control")
                finally:
                    await self.publish_health()
                return response.SerializeToString()
            except Exception as error:  # becomes a status, and is logged where unknown
                await _abort(context, error)
            finally:
                self._running_count -= running

        return answer

    def _unary_method(self, kind: type[Call]) -> _Method:
        async def answer(content: bytes, context: _Context) -> bytes:
            reply = await self._infer(kind, content, context)
            if isinstance(reply, Exception):
                await _abort(context, reply)
            return reply

        return answer

    def _stream_method(self, stream: StreamMethod) -> Callable[..., AsyncIterator[bytes]]:
        async def answer(contents: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
            async def ask(content: bytes) -> bytes:
                reply = await self._infer(stream.kind, content, context, stream.method)
                return stream.write(content, reply)

            try:
                async for response in answer_in_order(contents, ask, self._draining):
                    yield response
            except Exception as error:  # ends the stream with a status
                await _abort(context, error)

        return answer

    async def _infer(self, kind: type[Call], content: bytes, context: _Context, stream: str = "") -> Reply:
        """Answer one call, or one request of the RPC ``stream``."""
        running = await self._enter()
        remaining_s = context.time_remaining()
        try:
            try:
                message = parse(kind.request_type, content, self._max_message_bytes)
            except Exception as error:
                self._servicer.count_unread(stream or kind.unary_method, error)
                raise
            call = kind(
                message=message,
                deadline_s=math.inf if remaining_s is None else time.monotonic() + remaining_s,
                ticket=self._loop.create_future(),
            )
            if stream:
                call.method = stream
            if self._servicer.logs_requests:
                call.peer = context.peer()
            self._servicer.submit((call,), self._on_reply)
            try:
                reply: Reply = await call.ticket
            except asyncio.CancelledError:  # the caller hung up, or its deadline passed
                call.cancelled = True
                raise
        except Exception as error:  # is the answer
            return error
        else:
            return reply
        finally:
            self._running_count -= running

    async def _enter(self) -> int:
        """Note that a call has come; return what it adds to those that a drain must wait for."""
        self._last_call_s = time.monotonic()
        if self._closing:
            await self._closed.wait()
        running = 0 if self._draining.is_set() else 1
        self._running_count += running
        return running

    def _on_reply(self, call: Call, reply: Reply) -> None:
        """Hand a reply to the event loop, from any thread; one wake-up for all that come before it runs."""
        self._finished.append((call, reply))
        if not self._wake_up_pending:
            self._wake_up_pending = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Cleared before looking: a reply appended by a thread that saw it set is then still found below.
        self._wake_up_pending = False
        while self._finished:
            call, reply = self._finished.popleft()
            if not call.ticket.done():
                call.ticket.set_result(reply)


def cannot_listen(address: str) -> str:
    """Return the message of a ListenError."""
    return (
        f"cannot listen on {address}: the port is taken by another server, or the address is not this "
        "machine's; choose others with --port and --host"
    )


async def _abort(context: _Context, error: Exception) -> NoReturn:
    status, text = to_status(error)
    await context.abort(grpc.StatusCode[status], text)
    raise AssertionError("abort always raises")
