"""What gRPC itself brings along, served as the rest is: health for everybody, reflection for who may call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.servicer import CLASSIFIER_SERVICE, INFERENCE_SERVICE
from serving.transport.unpack import is_packed, unpack
from serving.transport.wire import to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from google.protobuf.message import Message

    from serving.permissions import Permissions

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_M = TypeVar("_M", bound="Message")

# No question to these services is longer than a name.
_MAX_UNPACKED_BYTES = 64 * 1024


def built_in_handlers(
    health_servicer: Any, permissions: Permissions, *, with_reflection: bool
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return the handlers of grpc.health.v1, which needs no token, and of server reflection."""
    # By hand, not by the generated functions: those would give compressed requests to the parser as they are.
    health_methods = {
        "Check": grpc.unary_unary_rpc_method_handler(
            health_servicer.Check,
            request_deserializer=_reader(health_pb2.HealthCheckRequest),
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(
            health_servicer.Watch,
            request_deserializer=_reader(health_pb2.HealthCheckRequest),
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        ),
    }
    handlers = [grpc.method_handlers_generic_handler(health.SERVICE_NAME, health_methods)]
    if with_reflection:
        handlers.append(_reflection_handler(permissions))
    return tuple(handlers)


def _reflection_handler(permissions: Permissions) -> grpc.GenericRpcHandler:
    services = (INFERENCE_SERVICE, CLASSIFIER_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(services)
    path = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"

    async def answer(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        if permissions.are_checked:
            try:
                permissions.check(path, context.invocation_metadata() or ())
            except Exception as error:  # becomes a status
                refuse(context, error)
                return
        async for response in servicer.ServerReflectionInfo(requests, context):
            yield response

    method = grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=_reader(reflection_pb2.ServerReflectionRequest),
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})


def _reader(message_type: type[_M]) -> Callable[[bytes], _M]:
    def read(content: bytes) -> _M:
        return message_type.FromString(
            unpack(content, _MAX_UNPACKED_BYTES) if is_packed(content) else content
        )

    return read


def refuse(context: Context, error: Exception) -> bytes:
    """Let the call end with the status that ``error`` stands for, and return what it gives for an answer.

    Not by context.abort: the call would refer to the error that it raises, and that, by its traceback, to the
    call and to the message, which would all stay in memory until the garbage collector comes by.
    """
    status, text = to_status(error)
    context.set_code(grpc.StatusCode[status])
    context.set_details(text)
    return b""
