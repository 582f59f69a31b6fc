"""Run by .venv-interop, like kserve_script.py; the SDK's client for REST.

Arguments: server address, .npy file of images uint8 [N, C, H, W]. Prints what the server answered, as JSON.
"""

import asyncio
import json
import logging
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

MODEL = "tiny"


async def main() -> None:
    address, images_file = sys.argv[1:]
    base = f"http://{address}"
    images = np.load(images_file)
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=20))
    binary = await client.infer(base, request(images, is_binary=True), model_name=MODEL)
    in_json = await client.infer(base, request(images, is_binary=False), model_name=MODEL)
    report = {
        "live": await client.is_server_live(base),
        "ready": await client.is_server_ready(base),
        "model_ready": await client.is_model_ready(base, MODEL),
        "id": binary.id,
        "logits": logits(binary),
        "json_logits": logits(in_json),
        "error": await error_of(client, base, images),
    }
    await client.close()
    print(json.dumps(report))


def request(images: np.ndarray, *, is_binary: bool) -> InferRequest:
    tensor = InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images, binary_data=is_binary)
    return InferRequest(MODEL, [tensor], request_id="42")


def logits(response: object) -> list:
    (output,) = [output for output in response.outputs if output.name == "logits"]
    return output.as_numpy().tolist()


async def error_of(client: InferenceRESTClient, base: str, images: np.ndarray) -> list:
    logging.disable()  # the client logs what it raises
    tensor = InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images.astype(np.float32), binary_data=False)
    try:
        await client.infer(base, InferRequest(MODEL, [tensor]), model_name=MODEL)
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, error.response.json()["error"]]
    raise AssertionError("FP32 pixels were taken")


asyncio.run(main())
