"""grpc.aio alone: sends the right answer to the first request to every request.

Nothing is parsed and no model is run after the first one: all that this costs is the library's and the
kernel's.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from benchmarks.serving.bare_model import METHOD, BareModel


async def serve(model: BareModel) -> None:
    """Serve until the process is ended."""
    answer = b""

    async def model_infer(request: bytes, _: Any) -> bytes:
        nonlocal answer
        answer = answer or model.answer(request)
        return answer

    _, service, method = METHOD.split("/")
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(model_infer)
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    model.announce(port)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(BareModel()))
