"""Serves over grpc.aio: the reference transport, to which the native one leaves all but unary inference."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc

from foldserve.runtime.cpus import usable_cpus
from foldserve.serving.addresses import common_port, listen_addresses, to_target
from foldserve.serving.background import run_in_thread
from foldserve.serving.errors import ListenError, ResourceExhaustedError
from foldserve.serving.protocol.names import CLASSIFIER_SERVICE, INFERENCE_SERVICE
from foldserve.serving.services.inference import UNARY_METHODS
from foldserve.serving.transport.compression import decompress, is_compressed
from foldserve.serving.transport.draining import wait_until_idle
from foldserve.serving.transport.grpcio.builtin_services import UnknownMethods, built_in_handlers, refuse
from foldserve.serving.transport.grpcio.health import Health
from foldserve.serving.transport.grpcio.options import server_options, to_grpc
from foldserve.serving.transport.grpcio.streams import STREAMS, answer_in_order
from foldserve.serving.transport.status import LARGE_BYTES, parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence

    from google.protobuf.message import Message

    from foldserve.serving.security.tokens import Caller
    from foldserve.serving.services.management import ManagementMethod
    from foldserve.serving.services.requests import InferenceRequest, Reply
    from foldserve.serving.transport.backend import Backend
    from foldserve.serving.transport.grpcio.streams import StreamMethod
    from foldserve.serving.transport.settings import WireSettings

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_T = TypeVar("_T")
_M = TypeVar("_M", bound="Message")
_Method: TypeAlias = "Callable[[bytes, _Context], Awaitable[bytes]]"

# Time to close once every accepted request is answered: for streams that end by themselves, and refusals.
_CLOSE_S = 1.0
_POLL_S = 0.02

# Threads that decompress and parse large messages. Each may hold a message of the largest size, and parsing
# holds the GIL, so that more threads would only take turns.
_MAX_READERS = 4

_log = logging.getLogger(__name__)


class GrpcioTransport:
    """A grpc.aio server for all RPCs: inference, management, health, reflection. Runs on its event loop.

    Args:
        backend: answers the calls.
        settings: limits and permissions at the wire. Messages slightly over the limit are refused with our
            text; gRPC refuses larger ones with its own, and the same status, before they are held in memory.
        is_fallback: whether the server answers calls that another transport forwards; that one then limits
            the connections.
    """

    name = "grpcio"

    def __init__(
        self,
        backend: Backend,
        settings: WireSettings,
        *,
        is_fallback: bool = False,
    ) -> None:
        self._inference = backend.inference
        self._management = backend.management
        self._lifecycle = backend.lifecycle
        self._settings = settings
        self._limit = settings.message_limit
        self._permissions = settings.permissions
        self._loop = asyncio.get_running_loop()
        self._finished: deque[tuple[InferenceRequest, Reply]] = deque()
        self._wake_up_pending = False
        self._running_count = 0  # calls that came before the drain
        self._last_call_s = 0.0
        self._reader = ThreadPoolExecutor(min(_MAX_READERS, usable_cpus()), thread_name_prefix="read")
        self._gate = asyncio.Event()  # cleared while calls that come are held back
        self._gate.set()
        self._health = Health(backend.lifecycle)
        self._server = grpc.aio.server(options=server_options(settings, is_fallback=is_fallback))
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        self._server.add_generic_rpc_handlers(
            built_in_handlers(self._health, settings.permissions, with_reflection=settings.reflection)
        )
        self._server.add_generic_rpc_handlers((UnknownMethods(),))

    async def start(self, host: str, port: int) -> int:
        """Start listening and return the port; if ``port`` is 0, the operating system chooses.

        Raises:
            ListenError: the address is in use or does not belong to this machine.
        """
        addresses = listen_addresses(host)
        port = common_port(addresses, port)
        return await self.listen([to_target(address, port) for address in addresses])

    async def listen(self, targets: Sequence[str]) -> int:
        """Listen on targets, such as "unix-abstract:name" or ADDRESS:PORT; returns and raises as `start`."""
        credentials = self._settings.credentials
        bound = 0
        for target in targets:
            try:
                bound = (
                    self._server.add_insecure_port(target)
                    if credentials is None
                    else self._server.add_secure_port(target, to_grpc(credentials))
                )
            except RuntimeError as error:
                raise ListenError(cannot_listen(target)) from error
        await self._server.start()
        return bound

    async def publish_health(self) -> None:
        """Publish the current health of the server and each model to Check and Watch."""
        self._health.publish(self._management.health())

    async def drain(self, give_up_s: float) -> None:
        """Wait until the running calls are answered and no more come, or until ``give_up_s``.

        Call it in DRAINING, and then `close`: after the last answer, new calls are held back until then.
        ``give_up_s`` is on time.monotonic's clock. Streams end when their requests are answered.
        """
        while self._running_count and time.monotonic() < give_up_s:
            await asyncio.sleep(_POLL_S)
        # Refused callers may retry at once, so the last refusals wait until `close` has told the connections
        # to send no more.
        self._gate.clear()
        # When gRPC's server stops, it answers CANCELLED to calls that have arrived and not started.
        await wait_until_idle(lambda: self._running_count > 0, lambda: self._last_call_s, give_up_s)

    async def close(self) -> None:
        """End the Watch streams, then close the connections; calls that still run are cancelled."""
        await self.publish_health()
        stopping = asyncio.ensure_future(self._server.stop(_CLOSE_S))
        await asyncio.sleep(0)  # let it begin: the connections are told to send no more
        self._gate.set()
        await stopping
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        # Messages are parsed here: gRPC would answer UNKNOWN, without a reason, to bytes that do not parse.
        by_path: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            path: grpc.unary_unary_rpc_method_handler(self._management_method(path, method))
            for path, method in (
                (f"/{INFERENCE_SERVICE}/{name}", method) for name, method in self._management.methods.items()
            )
        }
        for path, kind in UNARY_METHODS.items():
            by_path[path] = grpc.unary_unary_rpc_method_handler(self._unary_method(path, kind))
        for path, stream in STREAMS.items():
            by_path[path] = grpc.stream_stream_rpc_method_handler(self._stream_method(path, stream))
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

    def _management_method(self, path: str, method: ManagementMethod) -> _Method:
        async def answer(content: bytes, context: _Context) -> bytes:
            running = await self._enter()
            try:
                caller = self._check(path, context)
                request = await self._run(content, self._read, method.request_type, content)
                if not method.is_slow:
                    return method.answer(request).SerializeToString()
                if caller is not None:
                    _log.info("%s by %s", path.rpartition("/")[2], caller.name)
                try:
                    response: Message = await run_in_thread(lambda: method.answer(request), "control")
                finally:
                    await self.publish_health()
                return response.SerializeToString()
            except Exception as error:  # becomes a status, and is logged if unexpected
                return await refuse(context, error)
            finally:
                self._running_count -= running

        return answer

    def _unary_method(self, path: str, kind: type[InferenceRequest]) -> _Method:
        async def answer(content: bytes, context: _Context) -> bytes:
            try:
                holder = self._check(path, context)
            except Exception as error:  # becomes a status
                self._inference.count_unread(kind.unary_method, error)
                return await refuse(context, error)
            # One connection is one caller; with tokens, each of its tokens is one.
            peer = context.peer()
            reply = await self._infer(kind, content, context, peer if holder is None else (peer, holder))
            return await refuse(context, reply) if isinstance(reply, Exception) else reply

        return answer

    def _stream_method(self, path: str, stream: StreamMethod) -> Callable[..., AsyncIterator[bytes]]:
        async def answer(contents: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
            async def ask(content: bytes) -> bytes:
                try:
                    content = await self._run(content, self._decompressed, content)
                except ResourceExhaustedError as error:  # becomes the answer
                    self._inference.count_unread(stream.method, error)
                    return stream.write(b"", error)
                # A stream is a caller: streams that the native transport forwards share one connection.
                reply = await self._infer(stream.kind, content, context, context, stream.method)
                return await self._run(content, stream.write, content, reply)

            try:
                self._check(path, context)
                async for response in answer_in_order(contents, ask, self._lifecycle):
                    yield response
            except Exception as error:  # ends the stream with a status
                await refuse(context, error)

        return answer

    def _check(self, path: str, context: _Context) -> Caller | None:
        """Return the caller, None if no tokens are needed; raises as `Permissions.check`."""
        if not self._permissions.are_checked:
            return None
        return self._permissions.check(path, context.invocation_metadata() or ())

    async def _run(self, content: bytes, work: Callable[..., _T], *arguments: Any) -> _T:
        """Return ``work(*arguments)``, run in another thread if ``content`` is large or compressed."""
        if len(content) < LARGE_BYTES and not is_compressed(content):
            return work(*arguments)
        return await self._loop.run_in_executor(self._reader, work, *arguments)

    def _decompressed(self, content: bytes) -> bytes:
        """Return ``content``, decompressed if it is compressed; raises ResourceExhaustedError."""
        return decompress(content, self._limit.max_bytes()) if is_compressed(content) else content

    def _read(self, message_type: type[_M], content: bytes) -> _M:
        """Decompress ``content`` if it is compressed, and parse it; raises as `parse`."""
        return parse(message_type, self._decompressed(content), self._limit)

    async def _infer(
        self,
        kind: type[InferenceRequest],
        content: bytes,
        context: _Context,
        caller: Hashable,
        stream: str = "",
    ) -> Reply:
        """Answer a unary call of ``caller``, or one request of the streaming RPC ``stream``."""
        running = await self._enter()
        remaining_s = context.time_remaining()
        try:
            try:
                message = await self._run(content, self._read, kind.request_type, content)
            except Exception as error:
                self._inference.count_unread(stream or kind.unary_method, error)
                raise
            request = kind(
                message=message,
                deadline_s=math.inf if remaining_s is None else time.monotonic() + remaining_s,
                caller=caller,
                completion=self._loop.create_future(),
            )
            if stream:
                request.method = stream
            if self._inference.logs_requests:
                request.peer = context.peer()
            try:
                await self._run(content, self._inference.submit, (request,), self._on_reply)
                reply: Reply = await request.completion
            except asyncio.CancelledError:  # the caller hung up, or its deadline passed
                request.cancelled = True
                raise
        except Exception as error:  # becomes the answer
            return error
        else:
            return reply
        finally:
            self._running_count -= running

    async def _enter(self) -> int:
        """Register a call; return 1 if `drain` must wait for it, else 0."""
        self._last_call_s = time.monotonic()
        await self._gate.wait()
        running = 0 if self._lifecycle.refuses_inference else 1
        self._running_count += running
        return running

    def _on_reply(self, request: InferenceRequest, reply: Reply) -> None:
        """Pass a reply to the event loop, from any thread; replies that come together wake it once."""
        self._finished.append((request, reply))
        if not self._wake_up_pending:
            self._wake_up_pending = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Cleared first: a thread that still saw it set has appended its reply before the loop below ends.
        self._wake_up_pending = False
        while self._finished:
            request, reply = self._finished.popleft()
            if not request.completion.done():
                request.completion.set_result(reply)


def cannot_listen(address: str) -> str:
    """Return the message of a ListenError."""
    return (
        f"cannot listen on {address}: another server uses the port, or the address does not belong to "
        "this machine; choose others with --port and --host, or give --reuse-port to all servers of the port"
    )
