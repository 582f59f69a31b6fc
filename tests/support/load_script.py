"""A client process: many connections that ask without a pause until the server is gone; counts every answer.

`python -m tests.support.load_script HOST:PORT CONNECTIONS PAUSE_MS`, the pause after a refusal. Prints
"loading" once every connection has had an answer, and at the end one JSON object: calls by their outcome.
"""

import asyncio
import json
import sys
from collections import Counter

import grpc
import numpy as np

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork

GONE = "connection refused"


class Load:
    """Calls over ``connection_count`` connections of their own; each expects its own answer."""

    def __init__(self, address: str, connection_count: int, pause_s: float) -> None:
        self.address = address
        self.connection_count = connection_count
        self.pause_s = pause_s
        self.network = TinyNetwork()
        self.outcomes: Counter[str] = Counter()
        self.answered: set[int] = set()

    async def run(self) -> None:
        await asyncio.gather(*(self.call_until_gone(index) for index in range(self.connection_count)))
        print(json.dumps(self.outcomes))

    async def call_until_gone(self, index: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        images = self.network.random_images(1 + index % 5, seed=index)
        expected = self.network.logits(images)
        request = pb.ModelInferRequest(
            model_name="tiny",
            inputs=[{"name": "image", "datatype": "UINT8", "shape": images.shape}],
            raw_input_contents=[images.tobytes()],
        )
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            infer = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            outcome = ""
            while outcome != GONE:
                try:
                    answer = await infer(request, timeout=60)
                    logits = np.frombuffer(answer.raw_output_contents[0], np.float32)
                    outcome = "right" if np.abs(logits - expected.ravel()).max() < 1e-5 else "wrong"
                except grpc.aio.AioRpcError as error:
                    outcome = outcome_of(error)
                    await asyncio.sleep(self.pause_s)
                self.outcomes[outcome] += 1
                self.note(index)

    def note(self, index: int) -> None:
        """Say so once every connection has had an answer."""
        if index not in self.answered:
            self.answered.add(index)
            if len(self.answered) == self.connection_count:
                print("loading", flush=True)


def outcome_of(error: grpc.aio.AioRpcError) -> str:
    text = error.details() or ""
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        if "draining" in text:
            return "draining"
        if "onnection refused" in text:
            return GONE
    return f"{error.code().name}: {text}"


if __name__ == "__main__":
    asyncio.run(Load(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000).run())
