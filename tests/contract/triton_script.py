"""Run in a process of its own: stock tritonclient's stubs and ours register the same protobuf package.

Arguments: server address, .npy file of images uint8 [N, C, H, W]. Prints what the server answered, as JSON.
"""

import asyncio
import io
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from PIL import Image
from tritonclient.utils import InferenceServerException


def main() -> None:
    address, images_file = sys.argv[1:]
    images = np.load(images_file)
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    with triton.InferenceServerClient(address) as client:
        answer = client.infer("tiny", [tensor], request_id="42")
        asynchronous = asyncio.run(ask_asynchronously(address, tensor))
        report = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready("tiny"),
            "server": client.get_server_metadata().name,
            "shape": list(client.get_model_metadata("tiny").inputs[0].shape),
            "index": [
                (model.name, model.version, model.state)
                for model in client.get_model_repository_index().models
            ],
            "id": answer.get_response().id,
            "version": answer.get_response().model_version,
            "logits": answer.as_numpy("logits").tolist(),
            "probabilities": answer.as_numpy("probabilities").tolist(),
            "aio_logits": asynchronous.tolist(),
            "streamed_logits": ask_over_a_stream(client, tensor).tolist(),
            "classes": classes_of(client, tensor),
            "config": client.get_model_config("tiny").config.max_batch_size,
            "executions": client.get_inference_statistics("tiny", "2").model_stats[0].execution_count,
            "file_logits": ask_with_a_file(client).tolist(),
            "error": error_of(client),
        }
    print(json.dumps(report))


async def ask_asynchronously(address: str, tensor: triton.InferInput) -> np.ndarray:
    async with triton_aio.InferenceServerClient(address) as client:
        answer = await client.infer("tiny", [tensor], outputs=[triton_aio.InferRequestedOutput("logits")])
        return answer.as_numpy("logits")


def ask_over_a_stream(client: triton.InferenceServerClient, tensor: triton.InferInput) -> np.ndarray:
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put(error or result))
    client.async_stream_infer("tiny", [tensor], request_id="streamed")
    answer = answers.get(timeout=20)
    client.stop_stream()
    if isinstance(answer, Exception):
        raise answer
    return answer.as_numpy("logits")


def classes_of(client: triton.InferenceServerClient, tensor: triton.InferInput) -> list[str]:
    wanted = triton.InferRequestedOutput("probabilities", class_count=1)
    answer = client.infer("tiny", [tensor], outputs=[wanted])
    return [element.decode() for element in answer.as_numpy("probabilities").ravel()]


def ask_with_a_file(client: triton.InferenceServerClient) -> np.ndarray:
    """The first image again, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.load(sys.argv[2])[0, 0]).save(buffer, "PNG")
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([buffer.getvalue()], dtype=np.object_))
    return client.infer("tiny", [tensor]).as_numpy("logits")


def error_of(client: triton.InferenceServerClient) -> tuple[str, str]:
    tensor = triton.InferInput("image", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
    try:
        client.infer("tiny", [tensor])
    except InferenceServerException as error:
        return error.status(), error.message()
    raise AssertionError("FP32 pixels were taken")


main()
