"""Calls the server with the KServe SDK's clients: `python examples/infer_with_kserve.py MODEL [--rest]`.

Needs `pip install kserve`. Nothing of foldserve is imported. With --rest the server has to run with --http.
"""

from __future__ import annotations

import argparse
import asyncio

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request_for(model: str, shape: list[int]) -> InferRequest:
    """Return a request with one random image of a declared shape, [-1, C, H, W]."""
    images = np.random.default_rng(0).integers(0, 256, (1, *shape[1:]), dtype=np.uint8)
    tensor = InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return InferRequest(model, [tensor])


async def infer(model: str, shape: list[int], server: str, *, rest: bool) -> list[float]:
    """Return the probabilities of one random image."""
    request = request_for(model, shape)
    if rest:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        response = await client.infer(f"http://{server}", request, model_name=model)
        await client.close()
    else:
        async with InferenceGRPCClient(server) as client:
            response = await client.infer(request)
    (output,) = (output for output in response.outputs if output.name == "probabilities")
    probabilities: list[float] = output.as_numpy()[0].tolist()
    return probabilities


def main() -> None:
    """Print the probability of each class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--shape", default="1x28x28", help="channels, height and width of the input")
    parser.add_argument("--server", help="default: 127.0.0.1:8001, with --rest 127.0.0.1:8000")
    parser.add_argument("--rest", action="store_true", help="use HTTP instead of gRPC")
    options = parser.parse_args()
    server = options.server or ("127.0.0.1:8000" if options.rest else "127.0.0.1:8001")
    shape = [-1, *map(int, options.shape.split("x"))]
    for index, probability in enumerate(asyncio.run(infer(options.model, shape, server, rest=options.rest))):
        print(f"class {index}: {probability:.4f}")


if __name__ == "__main__":
    main()
