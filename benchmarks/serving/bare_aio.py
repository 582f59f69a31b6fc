"""The floor of the grpcio transport: grpc.aio, protobuf and the model, with the smallest greedy batcher.

A batch is what waits when the batcher's thread is free; the event loop is woken once for all its answers.
Running batches on the loop's own thread spares a lone caller two hand-overs, but took more processor time a
request at concurrency 32.
"""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from typing import Any, TypeAlias

import grpc

from benchmarks.serving.bare_model import MAX_BATCH_REQUESTS, METHOD, BareModel
from foldserve.serving.pb import open_inference_pb2 as pb

Answer: TypeAlias = asyncio.Future[pb.ModelInferResponse]
Waiting: TypeAlias = tuple[pb.ModelInferRequest, Answer]


class GreedyBatcher:
    """A thread that runs whatever waits, as soon as it is free, and wakes the event loop once a batch."""

    def __init__(self, model: BareModel) -> None:
        self._model = model
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[Waiting] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: pb.ModelInferRequest) -> Answer:
        """Queue a request and return the future of its response."""
        answer: Answer = self._loop.create_future()
        self._waiting.put((request, answer))
        return answer

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < MAX_BATCH_REQUESTS and not self._waiting.empty():
                batch.append(self._waiting.get())
            responses = self._model.infer([request for request, _ in batch])
            self._loop.call_soon_threadsafe(_deliver, batch, responses)


def _deliver(batch: list[Waiting], responses: list[pb.ModelInferResponse]) -> None:
    for (_, answer), response in zip(batch, responses, strict=True):
        if not answer.done():
            answer.set_result(response)


async def serve(model: BareModel) -> None:
    """Serve until the process is ended."""
    batcher = GreedyBatcher(model)

    async def model_infer(request: pb.ModelInferRequest, _: Any) -> pb.ModelInferResponse:
        return await batcher.submit(request)

    handler = grpc.unary_unary_rpc_method_handler(
        model_infer,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=pb.ModelInferResponse.SerializeToString,
    )
    _, service, method = METHOD.split("/")
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    model.announce(port)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(BareModel()))
