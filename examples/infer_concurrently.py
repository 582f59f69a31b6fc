"""Sends many requests at once with asyncio: `python examples/infer_concurrently.py MODEL`.

Requests that wait for the model at the same time run as one batch, so many in flight are much faster than one
after the other. When the server's queue is full it refuses at once: wait a moment and send the request again.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

import numpy as np

from foldserve import AsyncClient
from foldserve.serving.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.05


async def infer(client: AsyncClient, model: str, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the class probabilities [K] of a uint8 image [C, H, W]; try again while the queue is full."""
    for attempt in range(_ATTEMPTS):
        try:
            outputs = await client.infer(model, image[np.newaxis])
        except ResourceExhaustedError:
            await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
        else:
            probabilities: NDArray[np.float32] = outputs["probabilities"][0]
            return probabilities
    raise ResourceExhaustedError(f"the queue of {model} was full {_ATTEMPTS} times")


async def infer_all(server: str, model: str, count: int) -> None:
    """Send ``count`` random images at once and print the number of answers of each class."""
    async with AsyncClient(server) as client:
        description = await client.describe(model)
        shape = (count, *description.metadata.image.shape)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        answers = await asyncio.gather(*(infer(client, model, image) for image in images))
    for index, number in enumerate(np.bincount([answer.argmax() for answer in answers])):
        print(f"class {index}: {number} of {count} images")


def main() -> None:
    """Read the command line and send the requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--server", default="127.0.0.1:8001")
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    asyncio.run(infer_all(options.server, options.model, options.count))


if __name__ == "__main__":
    main()
