"""Serves health for everybody and server reflection for authorised callers, and refuses unknown methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from foldserve.serving.errors import ResourceExhaustedError, UnimplementedError
from foldserve.serving.protocol.names import CLASSIFIER_SERVICE, INFERENCE_SERVICE
from foldserve.serving.protocol.unsupported import explain_method
from foldserve.serving.transport.compression import decompress, is_compressed
from foldserve.serving.transport.grpcio.reflection_versions import REFLECTION_SERVICES, describe_v1
from foldserve.serving.transport.status import parse_bounded, to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from foldserve.serving.security.permissions import Permissions

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_M = TypeVar("_M", bound="Message")

# Requests to these services hold no more than a name.
_MAX_BYTES = 64 * 1024


def built_in_handlers(
    health_servicer: Any, permissions: Permissions, *, with_reflection: bool
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return the handlers of grpc.health.v1, which needs no token, and of server reflection."""
    handlers = [_health_handler(health_servicer)]
    if with_reflection:
        handlers += _reflection_handlers(permissions)
    return tuple(handlers)


class UnknownMethods(grpc.GenericRpcHandler):
    """Refuses every method. Behind all other handlers: gRPC asks them in order."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a handler that answers UNIMPLEMENTED and why; gRPC itself says "Method not found!"."""
        text = explain_method(details.method)

        async def answer(_: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            await refuse(context, UnimplementedError(text))
            yield b""

        # Also right for unary methods, which look the same on the wire.
        return grpc.stream_stream_rpc_method_handler(answer)


# Handlers are written by hand: the generated ones would pass compressed, damaged and large requests to the
# parser.


def _health_handler(servicer: Any) -> grpc.GenericRpcHandler:
    async def check(content: bytes, context: Context) -> bytes:
        try:
            answer = await servicer.Check(_read(health_pb2.HealthCheckRequest, content), context)
            return bytes(answer.SerializeToString())
        except Exception as error:  # becomes a status
            return await refuse(context, error)

    async def watch(content: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            async for answer in servicer.Watch(_read(health_pb2.HealthCheckRequest, content), context):
                yield answer.SerializeToString()
        except Exception as error:  # becomes a status
            await refuse(context, error)

    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)


def _reflection_handlers(permissions: Permissions) -> list[grpc.GenericRpcHandler]:
    describe_v1()
    services = (INFERENCE_SERVICE, CLASSIFIER_SERVICE, health.SERVICE_NAME, *REFLECTION_SERVICES)
    servicer = reflection.aio.ReflectionServicer(services)
    path = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"

    async def read(contents: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for content in contents:
            yield _read(reflection_pb2.ServerReflectionRequest, content)

    async def answer(contents: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            if permissions.are_checked:
                permissions.check(path, context.invocation_metadata() or ())
            async for response in servicer.ServerReflectionInfo(read(contents), context):
                yield response.SerializeToString()
        except Exception as error:  # becomes a status
            await refuse(context, error)

    method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(answer)
    return [
        grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": method})
        for service in REFLECTION_SERVICES
    ]


def _read(message_type: type[_M], content: bytes) -> _M:
    if len(content) > _MAX_BYTES:
        raise ResourceExhaustedError(
            f"the request has {len(content)} bytes; a request for health or reflection may have at most "
            f"{_MAX_BYTES}: send one name or symbol"
        )
    return parse_bounded(message_type, decompress(content, _MAX_BYTES) if is_compressed(content) else content)


async def refuse(context: Context, error: Exception) -> bytes:
    """End the call with the status that ``error`` stands for, and return what it gives for an answer.

    By context.abort, which sends a status and nothing else: clients try a call again only then. The call
    refers to the error that abort raises, and that would, by its traceback and its context, refer to the call
    and to the message, which would all stay in memory until the garbage collector comes by. Where ``error``
    is gRPC's own, the caller has gone and nobody waits for a status: it is raised as it is.
    """
    if isinstance(error, grpc.aio.BaseError):
        raise error
    status, text = to_status(error)
    try:
        await context.abort(grpc.StatusCode[status], text)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = aborted.__context__ = None
    return b""
