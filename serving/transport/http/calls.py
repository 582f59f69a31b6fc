"""Passes calls from the HTTP server's event loop to the services, and waits for their answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from foldserve.serving.background import run_in_thread
from foldserve.serving.errors import CancelledError
from foldserve.serving.protocol.names import INFERENCE_SERVICE
from foldserve.serving.services.inference import UNARY_METHODS
from foldserve.serving.transport.http.body import read_body
from foldserve.serving.transport.status import LARGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message
    from starlette.requests import Request

    from foldserve.serving.services.requests import InferenceRequest, Reply
    from foldserve.serving.transport.backend import Backend
    from foldserve.serving.transport.settings import WireSettings

_PATHS = {kind: path for path, kind in UNARY_METHODS.items()}

_log = logging.getLogger(__name__)


class Calls:
    """Answers calls; every method runs on the HTTP server's event loop.

    Attributes:
        running_count: accepted calls that are not answered yet; `HttpTransport.drain` waits for them.
        last_call_s: when the last call came, on time.monotonic's clock.
        is_for_this_machine: whether only this machine can reach the server, and calls it as it likes.
    """

    def __init__(
        self,
        backend: Backend,
        settings: WireSettings,
    ) -> None:
        self.running_count = 0
        self.last_call_s = 0.0
        self.is_for_this_machine = settings.is_for_this_machine
        self.management = backend.management
        self._limit = settings.message_limit
        self._inference = backend.inference
        self._lifecycle = backend.lifecycle
        self._permissions = settings.permissions

    async def manage(self, request: Request, method: str, read: Callable[[bytes], Message]) -> Message:
        """Return the answer of a management RPC to the message that ``read`` makes of the body.

        Raises:
            ServingError: the caller may not call it, the body is wrong, or the RPC fails.
        """
        with self._counted():
            caller = self.check(request, f"/{INFERENCE_SERVICE}/{method}")
            message = await self._read(request, read)
            rpc = self.management.methods[method]
            if not rpc.is_slow:
                return rpc.answer(message)
            if caller is not None:
                _log.info("%s by %s", method, caller.name)
            return await run_in_thread(lambda: rpc.answer(message), "control")

    async def infer(
        self, request: Request, kind: type[InferenceRequest], read: Callable[[bytes], Message]
    ) -> bytes:
        """Return the serialised response to the message that ``read`` makes of the body.

        Raises:
            ServingError: the caller may not call it, the body is wrong, or inference fails.
        """
        with self._counted():
            try:
                holder = self.check(request, _PATHS[kind])
                message = await self._read(request, read)
            except ClientDisconnect:
                self._inference.count_unread(kind.unary_method, CancelledError("the caller has gone"))
                raise
            except Exception as error:
                self._inference.count_unread(kind.unary_method, error)
                raise
            loop = asyncio.get_running_loop()
            # As over gRPC: one connection is one caller; with tokens, each of its tokens is one.
            call = kind(message=message, caller=(request.client, holder), completion=loop.create_future())
            if self._inference.logs_requests and request.client is not None:
                call.peer = f"http:{request.client.host}:{request.client.port}"

            def on_reply(done: InferenceRequest, reply: Reply) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(_complete, done.completion, reply)

            self._inference.submit((call,), on_reply)
            reply = await _unless_gone(request, call)
            if isinstance(reply, Exception):
                raise reply
            return reply

    def check(self, request: Request, path: str) -> Any:
        """Return the caller of the RPC ``path``, None if no tokens are needed.

        Raises:
            UnauthenticatedError, PermissionDeniedError: as `Permissions.check` does.
        """
        if not self._permissions.are_checked:
            return None
        return self._permissions.check(path, request.headers.items())

    async def _read(self, request: Request, read: Callable[[bytes], Message]) -> Message:
        """Return what ``read`` makes of the body; in a thread if it is large."""
        body = await read_body(request, self._limit)
        return read(body) if len(body) < LARGE_BYTES else await asyncio.to_thread(read, body)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.last_call_s = time.monotonic()
        running = 0 if self._lifecycle.refuses_inference else 1
        self.running_count += running
        try:
            yield
        finally:
            self.running_count -= running


def _complete(completion: asyncio.Future[Reply], reply: Reply) -> None:
    if not completion.done():
        completion.set_result(reply)


async def _unless_gone(request: Request, call: InferenceRequest) -> Reply:
    """Return the reply to ``call``; cancels it if the caller hangs up first."""
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((call.completion, gone), return_when=asyncio.FIRST_COMPLETED)
        if not call.completion.done():
            call.cancelled = True
            reply: Reply = await call.completion  # CANCELLED, or the answer if the model has begun
            return reply
        answered: Reply = call.completion.result()
        return answered
    finally:
        gone.cancel()


async def _hang_up(request: Request) -> None:
    """Return once the caller has gone. The body has been read: the next event is that or nothing."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
