"""Run by .venv-interop (`make interop`), where the KServe SDK is: its pins do not fit our environment's.

Arguments: server address, .npy file of images uint8 [N, C, H, W]. Prints what the server answered, as JSON.
"""

import asyncio
import json
import logging
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

MODEL = "tiny"


async def main() -> None:
    address, images_file = sys.argv[1:]
    images = np.load(images_file)
    async with InferenceGRPCClient(address, timeout=20) as client:
        raw = await client.infer(request(images, is_raw=True))
        typed = await client.infer(request(images, is_raw=False))
        many = await asyncio.gather(*(client.infer(request(image[None], is_raw=True)) for image in images))
        report = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(MODEL),
            "id": raw.id,
            "version": raw.model_version,
            "logits": logits(raw),
            "typed_logits": logits(typed),
            "logits_one_by_one": [logits(answer)[0] for answer in many],
            "error": await error_of(client, images),
        }
    print(json.dumps(report))


def request(images: np.ndarray, *, is_raw: bool) -> InferRequest:
    tensor = InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=is_raw)
    return InferRequest(MODEL, [tensor], request_id="42")


def logits(answer: object) -> list:
    (output,) = [output for output in answer.outputs if output.name == "logits"]
    return output.as_numpy().tolist()


async def error_of(client: InferenceGRPCClient, images: np.ndarray) -> list[str]:
    logging.disable()  # the client logs what it raises
    tensor = InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images.astype(np.float32))
    try:
        await client.infer(InferRequest(MODEL, [tensor]))
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    raise AssertionError("FP32 pixels were taken")


asyncio.run(main())
