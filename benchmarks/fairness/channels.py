"""Connects a caller: each has a connection of its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from benchmarks.serving.bare_model import METHOD

if TYPE_CHECKING:
    from collections.abc import Iterator

# The call of one method: takes a serialized message, returns one, or a future with `future`.
Call: TypeAlias = Any

LIMIT_S = 120.0


@contextmanager
def connected(port: int) -> Iterator[Call]:
    """Yield ModelInfer of the server at ``port``, over a new connection.

    Raises:
        grpc.FutureTimeoutError: the server cannot be reached.
    """
    options = [
        # Otherwise channels to one server share one connection, and would be one caller.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        grpc.channel_ready_future(channel).result(LIMIT_S)
        yield channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
